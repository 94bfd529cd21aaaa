"""Flights: requests on their way along a chain - what each holds, owns and waits for.

Single flight per block: of several requests that miss the same key, one owns the claim on it and
computes (or loads) it; the others wait, get the very buffer when it is set, and settle. If the
owner lets go, or shows no progress for `claim_age_s_max`, the first waiter takes over.

It refuses to lock and to call anyone: its owner holds one lock around every call, and what must be
called afterwards is collected in `due`.

    keys     k0 k1 k2 | k3 k4 k5 k6
             entries  | claims (owner) or waiting on the owner of k3
    [0, len(entries)) is valid, [len(entries), end) is to compute
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bul.blocks.prefix import RequestFacts
from bul.cache.resident import Entry, Resident

__all__ = ["Flight", "Flights"]

RANKS = {"interactive": 0, "batch": 1, "prefetch": 2}
"""Smaller is more urgent; an unknown class counts as batch."""


class Flight:
    """One request's match. Plain data; `Flights` moves it."""

    __slots__ = (
        "callbacks",
        "claims",
        "entries",
        "facts",
        "held",
        "keys",
        "loading",
        "ram_blocks",
        "rank",
        "renewed_s",
        "settled",
        "started_s",
        "touched",
        "waited",
        "waiters",
        "waits_on",
    )

    def __init__(self, keys: Sequence[bytes], facts: RequestFacts, now_s: float) -> None:
        self.keys = keys
        self.facts = facts
        self.rank = RANKS.get(facts.priority, RANKS["batch"])
        self.started_s = now_s
        self.renewed_s = now_s
        self.entries: list[Entry] = []
        self.held: tuple[bytes, Entry] | None = None
        self.claims: set[bytes] = set()
        self.waiters: list[Flight] = []
        self.waits_on: Flight | None = None
        self.callbacks: list[Callable[[], None]] = []
        self.touched = 0
        self.ram_blocks = 0
        self.settled = False
        self.loading = False
        self.waited = False


class Flights:
    """All flights over one `Resident`.

    start_load: called with a new owner and the time; True if it will call `loaded` later.
    """

    def __init__(
        self,
        resident: Resident,
        *,
        claim_age_s_max: float,
        start_load: Callable[[Flight, float], bool] = lambda _flight, _now_s: False,
    ) -> None:
        self._resident = resident
        self._claim_age_s_max = claim_age_s_max
        self._start_load = start_load
        self._owners: dict[bytes, Flight] = {}
        self.due: list[Callable[[], None]] = []
        self.alive: set[Flight] = set()
        self.waits_total = 0
        self.claims_expired_total = 0

    @property
    def waiting(self) -> int:
        """Flights that wait for another one's block."""
        return sum(len(owner.waiters) for owner in self.alive)

    def start(self, keys: Sequence[bytes], facts: RequestFacts, now_s: float) -> Flight:
        flight = Flight(keys, facts, now_s)
        self.alive.add(flight)
        flight.entries = self._resident.lookup(keys, 0, now_s)
        flight.ram_blocks = len(flight.entries)
        self.advance(flight, {}, now_s)
        return flight

    def advance(self, flight: Flight, fresh: Mapping[bytes, Entry], now_s: float) -> None:
        """Extend `flight` as far as the RAM reaches, then wait, load or settle.

        `fresh` are blocks that were just set, which the policy may not have admitted.
        """
        flight.waits_on = None
        keys, entries = flight.keys, flight.entries
        while len(entries) < len(keys):
            entries += self._resident.lookup(keys, len(entries), now_s)
            if len(entries) == len(keys):
                break
            entry = fresh.get(keys[len(entries)])
            if entry is None:
                break
            entries.append(entry)
        self._hold(flight)
        if len(entries) == len(keys):
            self._settle(flight)
            return
        owner = self._owners.get(keys[len(entries)])
        if owner is not None and owner is not flight and owner.rank <= flight.rank:
            if not flight.waited:
                flight.waited = True
                self.waits_total += 1
            owner.waiters.append(flight)
            flight.waits_on = owner
            return
        displaced = self._claim(flight, now_s)
        flight.loading = self._start_load(flight, now_s)
        if not flight.loading:
            self._settle(flight)
        for waiter in displaced:
            self.advance(waiter, {}, now_s)

    def landed(self, fresh: Mapping[bytes, Entry], now_s: float) -> None:
        """`fresh` blocks are there: their claims end, and whoever waited for them goes on."""
        moved: list[Flight] = []
        for key in fresh:
            owner = self._owners.pop(key, None)
            if owner is None:
                continue
            owner.claims.discard(key)
            owner.renewed_s = now_s
            if owner.waiters:
                moved += owner.waiters
                owner.waiters = []
        for flight in moved:
            self.advance(flight, fresh, now_s)

    def extend(self, flight: Flight, entries: Sequence[Entry], now_s: float) -> None:
        """Blocks that `flight` loads have come, in order, and were offered to the RAM."""
        first = len(flight.entries)
        fresh = dict(zip(flight.keys[first:], entries, strict=False))
        flight.entries += entries
        self._hold(flight)
        self.landed(fresh, now_s)

    def loaded(self, flight: Flight) -> None:
        """The load is over: what is missing now is for the flight's owner to compute."""
        flight.loading = False
        self._settle(flight)

    def release(self, flight: Flight, now_s: float) -> bool:
        """End `flight`: holds and unfulfilled claims. False if it had ended already."""
        if flight not in self.alive:
            return False
        self.alive.discard(flight)
        if flight.entries and not flight.touched:
            # A request that stored nothing still used its prefix.
            used = self._resident.lookup(flight.keys[: len(flight.entries)], 0, now_s)
            self._resident.touch(flight.keys[: len(used)], flight.facts, now_s)
        if flight.held is not None:
            self._resident.unhold(*flight.held)
            flight.held = None
        if flight.waits_on is not None:
            flight.waits_on.waiters.remove(flight)
            flight.waits_on = None
        self._settle(flight)
        self._disown(flight, now_s)
        return True

    def expire(self, now_s: float) -> None:
        """Take their claims from owners that others wait for and that made no progress."""
        for flight in list(self.alive):
            if flight.waiters and now_s - flight.renewed_s >= self._claim_age_s_max:
                self.claims_expired_total += 1
                self._disown(flight, now_s)

    def owner(self, key: bytes) -> Flight | None:
        """Who has the claim on `key`."""
        return self._owners.get(key)

    def _claim(self, flight: Flight, now_s: float) -> list[Flight]:
        """Own the missing keys, also those of a less urgent owner; returns who waited for that.

        An owner may sit in a queue that the more urgent never let it leave, so they do not wait
        for it, at the price of computing a block twice now and then.
        """
        flight.renewed_s = now_s
        displaced: list[Flight] = []
        for key in flight.keys[len(flight.entries) :]:
            owner = self._owners.setdefault(key, flight)
            if owner.rank > flight.rank:
                owner.claims.discard(key)
                displaced += owner.waiters
                owner.waiters = []
                owner = self._owners[key] = flight
            if owner is flight:
                flight.claims.add(key)
        return displaced

    def _disown(self, flight: Flight, now_s: float) -> None:
        for key in flight.claims:
            self._owners.pop(key, None)
        flight.claims.clear()
        waiters, flight.waiters = flight.waiters, []
        for waiter in waiters:
            self.advance(waiter, {}, now_s)

    def _hold(self, flight: Flight) -> None:
        """Hold the deepest resident block of the match: its ancestors cannot leave before it."""
        entries = self._resident.entries
        for position in range(len(flight.entries) - 1, -1, -1):
            key, entry = flight.keys[position], flight.entries[position]
            if entries.get(key) is entry:
                held = flight.held
                if held is not None and held[1] is entry:
                    return
                flight.held = (key, self._resident.hold(key))
                if held is not None:
                    self._resident.unhold(*held)
                return

    def _settle(self, flight: Flight) -> None:
        flight.settled = True
        self.due += flight.callbacks
        flight.callbacks = []
