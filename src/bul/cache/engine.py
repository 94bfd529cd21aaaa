"""The KV cache engine: blocks and values in RAM, slower tiers behind it, one short lock over all.

It refuses to raise for a fault of a tier (that is a shorter match), to do I/O or call anyone under
its lock, and to keep more than `max_tokens` and `ram_bytes_max` allow.

The core is synchronous and buffer-based, so that a decode loop or another engine's scheduler can
call it: `match_prefix`, `set_blocks`, `finish`, `observe_prefill` (the contract is
`blocks/prefix.py`). `get`, `set`, `delete` and `clear` are the asyncio face for general values.

    match_prefix -> Flight (flights.py): holds, claims, waits
    set_blocks   -> Resident (resident.py): payloads, bounded, the eviction policy judges
    get / set    -> ValueStore (values.py): at most half of `ram_bytes_max`
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from bul.blocks.identity import Identity
from bul.blocks.prefix import Buffer, PrefixMatch, RequestFacts
from bul.cache.eviction.make import POLICY_NAMES, make_policy
from bul.cache.flights import Flight, Flights
from bul.cache.resident import Entry, Resident
from bul.cache.values import ValueStore, check_key, decode, encode
from bul.clock import Clock, SystemClock
from bul.config import KVCacheConfig

__all__ = ["EngineMatch", "UltraAdaptiveKVCacheEngine"]

VALUES_SHARE = 0.5
"""General values take at most this share of `ram_bytes_max`: one 1 GiB value fits in the default,
and no number of values can push the blocks out."""

HOUSEKEEPING_S = 0.25
"""How often aged claims and leaked matches are looked for while anybody waits."""

logger = logging.getLogger(__name__)


class EngineMatch:
    """The handle that a caller holds; see `PrefixMatch`. Dropped without `release`, it counts."""

    __slots__ = ("_engine", "_flight", "_released")

    def __init__(self, engine: UltraAdaptiveKVCacheEngine, flight: Flight) -> None:
        self._engine = engine
        self._flight = flight
        self._released = False

    @property
    def blocks(self) -> Sequence[Buffer]:
        """Payloads of [0, cached), root first; final once `settled`. No copies."""
        return [entry.payload for entry in self._flight.entries]

    @property
    def settled(self) -> bool:
        """No load is under way and nobody else computes the next missing block."""
        return self._flight.settled

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Call `callback` exactly once; now, if settled, else from the thread that settles it."""
        self._engine._when_settled(self._flight, callback)  # noqa: SLF001  # its own handle

    def release(self) -> None:
        """Drop holds and unfulfilled claims. Idempotent; any thread."""
        if not self._released:
            self._released = True
            self._engine._release(self._flight)  # noqa: SLF001  # its own handle

    def __del__(self) -> None:
        if not self._released:
            # May run inside any allocation, even under the engine's lock: only leave a note.
            self._engine._leaked.append(self._flight)  # noqa: SLF001  # its own handle


class UltraAdaptiveKVCacheEngine:
    """A `PrefixCache`, and the guide's `await engine.get(key)` / `set(key, value)`.

    identity: of the model whose blocks these are; keys already contain it, tiers need it to tell
    namespaces apart. clock: monotonic seconds for ages and recency.
    """

    def __init__(
        self,
        config: KVCacheConfig | None = None,
        *,
        identity: Identity | bytes | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = config = config or KVCacheConfig()
        self.identity = identity
        self._clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        blocks_max = config.max_tokens // config.block_tokens
        name = config.eviction if config.eviction in POLICY_NAMES else "lru"
        self._resident = Resident(
            make_policy(name, blocks_max, config.seed),
            blocks_max=blocks_max,
            bytes_max=config.ram_bytes_max,
            block_tokens=config.block_tokens,
        )
        self._values = ValueStore(int(config.ram_bytes_max * VALUES_SHARE))
        self._flights = Flights(self._resident, claim_age_s_max=config.claim_age_s_max)
        self._leaked: collections.deque[Flight] = collections.deque()
        self._leaks_total = 0
        self._matches_total = 0
        self._asked_tokens_total = 0
        self._hit_tokens_total = 0
        self._set_blocks_total = 0
        self._closed = threading.Event()
        self._housekeeper: threading.Thread | None = None

    # blocks: the synchronous core

    def match_prefix(
        self, keys: Sequence[bytes], facts: RequestFacts = RequestFacts()
    ) -> PrefixMatch:
        """The longest stored prefix of `keys`, held; claims on the rest, or a wait for others'.

        Never blocks on I/O. Of one thread's two unreleased matches over the same missing keys the
        second one waits for the first: release in time.
        """
        if self._leaked:
            self.tick()
        now_s = self._clock.now_s()
        with self._lock:
            flight = self._flights.start(keys, facts, now_s)
            self._matches_total += 1
            self._asked_tokens_total += len(keys) * self.config.block_tokens
            waits = not flight.settled
            due = self._take_due()
        self._call(due)
        if waits:
            self._keep_house()
        return EngineMatch(self, flight)

    def set_blocks(
        self,
        path: Sequence[bytes],
        first: int,
        blocks: Sequence[Buffer],
        facts: RequestFacts = RequestFacts(),
    ) -> None:
        """Keep `blocks` as path[first : first + len(blocks)]; who waited for them goes on."""
        if not blocks:
            return
        path = path[: first + len(blocks)]
        assert len(path) == first + len(blocks), "more blocks than keys"
        now_s = self._clock.now_s()
        expires_s = now_s + self.config.ttl_s if self.config.ttl_s else 0.0
        parents = (path[first - 1] if first else b"", *path[first:])
        new = [
            Entry(block, parent, expires_s=expires_s, tenant=facts.tenant)
            for block, parent in zip(blocks, parents, strict=False)
        ]
        with self._lock:
            owner = self._flights.owner(path[first])
            touched = owner.touched if owner is not None else 0
            self._resident.admit(path, new, facts, touched=touched, now_s=now_s)
            if owner is not None:
                owner.touched = len(path)
            self._set_blocks_total += len(new)
            self._flights.landed(dict(zip(path[first:], new, strict=True)), now_s)
            due = self._take_due()
        self._call(due)

    def finish(
        self, path: Sequence[bytes], output_tokens: int, facts: RequestFacts = RequestFacts()
    ) -> None:
        """Tell the policy how the request over `path` ended."""
        with self._lock:
            self._resident.finish(path, output_tokens)

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """A measurement for the break-even gate."""

    # general values

    async def get(self, key: str, default: object = None) -> object:
        """The value of `key`, or `default`; arrays come back read-only.

        Only a `default` of your own tells a kept JSON null from a miss. TypeError for a key that
        is no str, ValueError for one longer than KEY_CHARS_MAX.
        """
        check_key(key)
        with self._lock:
            stored = self._values.get(key, self._clock.now_s())
        return default if stored is None else decode(stored)

    async def set(self, key: str, value: object) -> bool:
        """Keep `value`; False if it is larger than the budget of values, which stay untouched.

        TypeError for anything but bytes, str, JSON values and NumPy arrays.
        """
        check_key(key)
        now_s = self._clock.now_s()
        stored = encode(value, expires_s=now_s + self.config.ttl_s if self.config.ttl_s else 0.0)
        with self._lock:
            kept = self._values.set(key, stored)
            self._resident.reserve(self._values.bytes)
        return kept

    async def delete(self, key: str) -> bool:
        """Forget the value of `key`; whether there was one."""
        check_key(key)
        with self._lock:
            deleted = self._values.delete(key)
            self._resident.reserve(self._values.bytes)
        return deleted

    async def clear(self) -> None:
        """Forget all values and all blocks. Matches in use keep their buffers."""
        self.clear_now()

    def clear_now(self) -> None:
        """`clear` for callers without an event loop."""
        with self._lock:
            self._values.clear()
            self._resident.clear()
            self._resident.reserve(0)

    # the house

    def stats(self) -> Mapping[str, Mapping[str, float]]:
        """Counters (`..._total`) and gauges by part: "engine", "ram", "values", then each tier."""
        with self._lock:
            resident, flights, values = self._resident, self._flights, self._values
            return {
                "engine": {
                    "matches_total": self._matches_total,
                    "asked_tokens_total": self._asked_tokens_total,
                    "hit_tokens_total": self._hit_tokens_total,
                    "set_blocks_total": self._set_blocks_total,
                    "matches_alive": len(flights.alive),
                    "matches_waiting": flights.waiting,
                    "claims_waited_total": flights.waits_total,
                    "claims_expired_total": flights.claims_expired_total,
                    "matches_leaked_total": self._leaks_total,
                },
                "ram": {
                    "hit_tokens_total": self._hit_tokens_total,
                    "blocks": len(resident.entries),
                    "bytes": resident.bytes,
                    "evictions_total": resident.evictions_total,
                    "refused_total": resident.refused_total,
                },
                "values": {
                    "values": len(values),
                    "bytes": values.bytes,
                    "hits_total": values.hits_total,
                    "misses_total": values.misses_total,
                    "evictions_total": values.evictions_total,
                    "refused_total": values.refused_total,
                },
            }

    def tick(self) -> None:
        """Expire aged claims and release leaked matches; the housekeeper's work, callable."""
        now_s = self._clock.now_s()
        while self._leaked:
            flight = self._leaked.popleft()
            self._leaks_total += 1
            logger.warning(
                "a match was dropped without release after %.1f s; its holds are freed now",
                now_s - flight.started_s,
            )
            self._release(flight)
        with self._lock:
            self._flights.expire(now_s)
            due = self._take_due()
        self._call(due)

    def close(self) -> None:
        """Stop the housekeeper. Idempotent."""
        self._closed.set()
        if self._housekeeper is not None:
            self._housekeeper.join()

    def _when_settled(self, flight: Flight, callback: Callable[[], None]) -> None:
        with self._lock:
            if not flight.settled:
                flight.callbacks.append(callback)
                return
        callback()

    def _release(self, flight: Flight) -> None:
        now_s = self._clock.now_s()
        with self._lock:
            if self._flights.release(flight, now_s):
                hit = len(flight.entries) * self.config.block_tokens
                self._hit_tokens_total += hit
            due = self._take_due()
        self._call(due)

    def _take_due(self) -> list[Callable[[], None]]:
        due, self._flights.due = self._flights.due, []
        return due

    @staticmethod
    def _call(due: list[Callable[[], None]]) -> None:
        for callback in due:
            callback()

    def _keep_house(self) -> None:
        """Start the housekeeper, once: only who waits for others needs claims to age."""
        with self._lock:
            if self._housekeeper is not None or self._closed.is_set():
                return
            self._housekeeper = threading.Thread(
                target=self._house, name="bul-cache-housekeeper", daemon=True
            )
            self._housekeeper.start()

    def _house(self) -> None:
        while not self._closed.wait(HOUSEKEEPING_S):
            self.tick()
