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
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from bul.blocks.identity import Identity
from bul.blocks.prefix import Buffer, PrefixMatch, RequestFacts
from bul.cache.ahead import Ahead
from bul.cache.contract import Tier
from bul.cache.counters import RequestCounters
from bul.cache.default_tiers import default_tiers
from bul.cache.deletion import delete_blocks
from bul.cache.eviction.make import make_policy
from bul.cache.flights import Flight, Flights
from bul.cache.general import GeneralValues
from bul.cache.handle import EngineMatch
from bul.cache.keeper import Keeper
from bul.cache.lane import make_lanes
from bul.cache.learner import Learner
from bul.cache.loads import Loads
from bul.cache.pins import Pins
from bul.cache.placement import PrefillRate
from bul.cache.resident import Resident
from bul.cache.shares import TenantShares
from bul.cache.traced import match_told, under_match
from bul.cache.values import ValueStore
from bul.clock import Clock, SystemClock
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable

__all__ = ["UltraAdaptiveKVCacheEngine"]

VALUES_SHARE = 0.5
"""General values take at most this share of `ram_bytes_max`: one 1 GiB value fits in the default,
and no number of values can push the blocks out."""

HOUSEKEEPING_S = 0.25
"""How often aged claims and leaked matches are looked for while anybody waits."""

logger = logging.getLogger(__name__)


class UltraAdaptiveKVCacheEngine:
    """A `PrefixCache`, and the guide's `await engine.get(key)` / `set(key, value)`.

    identity: of the model whose blocks these are; keys already contain it, `explain` compares it.
    tiers: slower tiers, fastest first; the engine closes them; `None` opens those that the config
    asks for (TierUnavailable if it cannot). block_bytes: size of every block of this model, 0 if
    unknown; a tier that gives another size has failed. watcher: see `Resident`.
    """

    def __init__(
        self,
        config: KVCacheConfig | None = None,
        *,
        identity: Identity | bytes | None = None,
        tiers: Sequence[Tier] | None = None,
        block_bytes: int = 0,
        watcher: Callable[[bytes, bool], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = config = config or KVCacheConfig()
        self.identity = identity
        self._clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        blocks_max = config.max_tokens // config.block_tokens
        self._learner = Learner()
        policy = make_policy(config.eviction, blocks_max, config.seed)
        policy.learn_with(self._learner.submit)
        self._resident = Resident(
            policy,
            blocks_max=blocks_max,
            bytes_max=config.ram_bytes_max,
            block_tokens=config.block_tokens,
        )
        self._resident.watcher = watcher
        self._pins = Pins(self._resident)
        self._shares = TenantShares(self._resident, config.tenant_share_max)
        self._values = ValueStore(int(config.ram_bytes_max * VALUES_SHARE))
        self._prefill = PrefillRate()
        tiers = default_tiers(config, identity, self._clock) if tiers is None else tiers
        self._lanes = make_lanes(tiers, config, self._prefill, self._clock)
        self._keeper = Keeper(
            self._resident,
            self._lanes,
            ttl_s=config.ttl_s,
            block_tokens=config.block_tokens,
            clock=self._clock,
        )
        self._general = GeneralValues(
            self._values,
            self._lanes,
            self._resident,
            lock=self._lock,
            clock=self._clock,
            ttl_s=config.ttl_s,
            make_room=self._keeper.demote,
        )
        self._flights = Flights(
            self._resident,
            claim_age_s_max=config.claim_age_s_max,
            start_load=lambda flight, now_s: self._loads.start(flight, now_s),  # noqa: PLW0108 - made below
        )
        self._loads = Loads(
            self._lanes,
            self._flights,
            self._keeper,
            lock=self._lock,
            call_due=self._call_due,
            clock=self._clock,
            window_blocks=config.prefetch_size if config.enable_prefetch else 0,
            block_tokens=config.block_tokens,
            block_bytes=block_bytes,
        )
        self._ahead = Ahead(self._resident, self._loads, config, self._lock, self._clock)
        self._ahead.start()
        self.leaked: collections.deque[Flight] = collections.deque()
        self._leaks_total = self._set_blocks_total = 0
        self._requests = RequestCounters(config.block_tokens)
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
        if self.leaked:
            self.tick()
        now_s = self._clock.now_s()
        self._ahead.asked(now_s)
        if facts.span is not None:
            facts = under_match(facts, len(keys) * self.config.block_tokens)
        with self._lock:
            flight = self._flights.start(keys, facts, now_s)
            waits = not flight.settled
        self._call_due()
        if waits:
            self._keep_house()
        if facts.span is not None:
            self.when_settled(flight, match_told(flight, self.config.block_tokens))
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
        with self._lock:
            owner = self._flights.owner(path[first])
            touched = owner.touched if owner is not None else 0
            new = self._keeper.keep(path, blocks, facts, touched=touched, now_s=now_s)
            if owner is not None:
                owner.touched = len(path)
            self._set_blocks_total += len(new)
            self._flights.landed(dict(zip(path[first:], new, strict=True)), now_s)
        self._call_due()

    def delete_blocks(self, keys: Sequence[bytes]) -> Mapping[str, int | None]:
        """Forget these in every tier; how many are left in each, None where it did not answer."""
        return delete_blocks(keys, self._resident, self._lanes, self._lock)

    def finish(
        self, path: Sequence[bytes], output_tokens: int, facts: RequestFacts = RequestFacts()
    ) -> None:
        """Tell the policy how the request over `path` ended."""
        with self._lock:
            self._resident.finish(path, output_tokens)
            self._ahead.ended(path, facts.tenant)

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """A measurement for the break-even gate: `tokens` were computed in `seconds`."""
        with self._lock:
            self._prefill.observe(tokens, seconds)

    def pin(self, path: Sequence[bytes]) -> bool:
        """Keep `path` in RAM until `unpin`; False if not all of it is there, or too much is."""
        with self._lock:
            return self._pins.pin(path)

    def unpin(self, path: Sequence[bytes]) -> bool:
        """Undo `pin` of the very same path; whether it was pinned."""
        with self._lock:
            return self._pins.unpin(path)

    # general values

    async def get(self, key: str, default: object = None) -> object:
        """The value of `key`, or `default`; arrays come back read-only.

        Only a `default` of your own tells a kept JSON null from a miss. TypeError for a key that
        is no str, ValueError for one longer than KEY_CHARS_MAX.
        """
        return await self._general.get(key, default)

    async def set(self, key: str, value: object) -> bool:
        """Keep `value`; False if it is larger than the budget of values: then no value is kept.

        TypeError for anything but bytes, str, JSON values and NumPy arrays. Other replicas that
        hold an older value in RAM go on serving it until its time is over.
        """
        return await self._general.set(key, value)

    async def delete(self, key: str) -> bool:
        """Forget the value of `key`; whether there was one."""
        return await self._general.delete(key)

    async def clear(self) -> None:
        """Forget all values and all blocks, in every tier. Matches in use keep their buffers."""
        self.clear_ram()
        await self._general.clear_tiers()
        self.clear_ram()  # what was loaded meanwhile

    def clear_ram(self) -> None:
        """Forget all values and blocks in RAM; the slower tiers keep theirs."""
        with self._lock:
            self._pins.clear()
            self._values.clear()
            self._resident.clear()
            self._resident.reserve(0)

    # the house

    def stats(self) -> Mapping[str, Mapping[str, float]]:
        """Counters (`..._total`) and gauges by part: "engine", "ram", "values", then each tier.

        Each tier's part is its own `Tier.stats` and the lane's counters; of a tier that hangs or
        fails only the latter.
        """
        with self._lock:
            parts: dict[str, Mapping[str, float]] = {
                "engine": self._engine_stats(),
                "ram": {
                    "hit_tokens_total": self._requests.ram_hit_tokens_total,
                    "pinned_prefixes": len(self._pins),
                    "over_share_evictions_total": self._shares.trimmed_total,
                    **self._resident.stats(self._clock.now_s()),
                },
                "values": self._values.stats(),
            }
        for lane in self._lanes:
            parts[lane.tier.name] = lane.stats()
        return parts

    def stats_by_class(self) -> Mapping[str, Mapping[str, float]]:
        """Matches, asked and cached tokens of "interactive", "batch" and "prefetch" requests."""
        with self._lock:
            return self._requests.by_class()

    def _engine_stats(self) -> Mapping[str, float]:
        flights = self._flights
        return {
            **self._requests.totals(),
            **self._ahead.stats(),
            "set_blocks_total": self._set_blocks_total,
            "matches_alive": len(flights.alive),
            "matches_waiting": flights.waiting,
            "matches_leaked_total": self._leaks_total,
            "claims_waited_total": flights.waits_total,
            "claims_expired_total": flights.claims_expired_total,
            "loads_live": self._loads.live,
            "loads_timed_out_total": self._loads.timeouts_total,
            "lessons_total": self._learner.lessons_total,
            "lessons_failed_total": self._learner.failed_total,
            "prefill_tokens_per_s": self._prefill.tokens_per_s or 0.0,
        }

    def presence(self, keys: Sequence[bytes]) -> Mapping[str, Sequence[bool]]:
        """For each tier whether it has each key. For `explain`: as slow as the slowest tier."""
        with self._lock:
            here = {"ram": [key in self._resident.entries for key in keys]}
        for lane in self._lanes:
            there = [False] * len(keys)
            with contextlib.suppress(TierUnavailable):
                there = lane.call("match", functools.partial(_each, lane.tier, keys))
            here[lane.tier.name] = there
        return here

    def tick(self) -> None:
        """Expire aged claims and release leaked matches; the housekeeper's work, callable."""
        now_s = self._clock.now_s()
        while self.leaked:
            flight = self.leaked.popleft()
            self._leaks_total += 1
            logger.warning(
                "a match was dropped without release after %.1f s; its holds are freed now",
                now_s - flight.started_s,
            )
            self.release(flight)
        with self._lock:
            self._loads.tick(now_s)
            self._flights.expire(now_s)
        self._call_due()

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until the slower tiers have written what was queued; False after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        return all(
            lane.flush(max(0.0, deadline_s - time.monotonic())) for lane in list(self._lanes)
        )

    def close(self, timeout_s: float = 30.0) -> bool:
        """Settle all matches, flush, stop the threads, close the tiers. Idempotent.

        False if a hung tier kept it from that within `timeout_s`; then its writes are lost.
        """
        if self._closed.is_set():
            return True
        flushed = self.flush(timeout_s)
        self._closed.set()
        self._ahead.close(timeout_s)
        with self._lock:
            self._loads.stop()
        self._call_due()
        closed = [lane.close(timeout_s) for lane in self._lanes]
        if self._housekeeper is not None:
            self._housekeeper.join()
        self._learner.close()
        return flushed and all(closed)

    def when_settled(self, flight: Flight, callback: Callable[[], None]) -> None:
        """For `EngineMatch`."""
        with self._lock:
            if not flight.settled:
                flight.callbacks.append(callback)
                return
        callback()

    def release(self, flight: Flight) -> None:
        """For `EngineMatch`."""
        now_s = self._clock.now_s()
        with self._lock:
            if self._flights.release(flight, now_s):
                self._ahead.credit(flight)
                self._requests.add(flight)
        self._call_due()

    def _call_due(self) -> None:
        """Call who waits for a settled match. Never under the lock: they may call the engine."""
        if not self._flights.due:
            return
        with self._lock:
            due, self._flights.due = self._flights.due, []
        for callback in due:
            try:
                callback()
            except Exception:
                logger.exception("a caller's when_settled callback raised")

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
        pause_s = min(HOUSEKEEPING_S, self.config.tier_deadline_s / 4)
        while not self._closed.wait(pause_s):
            self.tick()


def _each(tier: Tier, keys: Sequence[bytes]) -> list[bool]:
    """Whether each key is there, also behind one that is not."""
    return [tier.match([key]) == 1 for key in keys]
