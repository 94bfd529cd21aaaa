"""Loads ahead what `prefetch.py` wishes for, while nobody asks the cache for anything.

It refuses to evict (what nobody asked for comes in where there is room, and leaves first), to make
a request wait (it reads on a thread of its own, a slice at a time, and not while a match is alive,
a load or a write under way, or within QUIET_S of the last one: the slice under way is all that a
request can meet), and to read more than `bytes_per_s_max`.

Where it pays: after a restart, when RAM is empty and the disk is not; and when RAM has got room
again (`clear_ram`, `ttl_s`, general values that left). RAM that is full stays full, and then this
does nothing. After a restart it fills at most WARM_SHARE of the RAM.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections.abc import Mapping, Sequence

from bul.blocks.prefix import Buffer, RequestFacts
from bul.cache.flights import Flight
from bul.cache.loads import Loads
from bul.cache.prefetch import Wishes
from bul.cache.resident import Resident
from bul.clock import Clock
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable

__all__ = ["Ahead"]

logger = logging.getLogger(__name__)

QUIET_S = 0.25
SLICE_BYTES = 2 << 20
SLICE_BLOCKS_MAX = 64
WARM_SHARE = 0.5
PAUSE_S = 1.0
"""Between looks, when there was nothing to do."""


class Ahead:
    """`step` does one slice; the thread only repeats it. `lock` is the engine's."""

    def __init__(
        self,
        resident: Resident,
        loads: Loads,
        config: KVCacheConfig,
        lock: threading.Lock,
        clock: Clock,
        *,
        slice_blocks_max: int = SLICE_BLOCKS_MAX,
    ) -> None:
        self.wishes = Wishes()
        self._resident = resident
        self._loads = loads
        self._lanes = loads.lanes
        self._keeper = loads.keeper
        self._flights = loads.flights
        self._lock = lock
        self._clock = clock
        self._bytes_per_s_max = config.prefetch_bytes_per_s_max * config.enable_prefetch
        self._slice_blocks_max = slice_blocks_max
        self._block_tokens = config.block_tokens
        self._asked_s = clock.now_s()
        self._warm_left = 0
        self._path: Sequence[bytes] = ()
        self._is_warming = False
        self._facts = RequestFacts()
        self._size_seen = 0
        self._is_shed = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._blocks_total = self._bytes_total = self._shed_total = self._used_total = 0

    @property
    def enabled(self) -> bool:
        return bool(self._lanes) and self._bytes_per_s_max > 0

    def start(self) -> None:
        """Begin with what was hot before, in a thread; a disabled one does nothing."""
        if self.enabled:
            self.warm_up()
            self._thread = threading.Thread(target=self._run, name="bul-cache-ahead", daemon=True)
            self._thread.start()

    def warm_up(self) -> None:
        """Wish for what the first tier that remembers it says was hot."""
        self._warm_left = int(WARM_SHARE * self._resident.capacity_blocks)
        for lane in self._lanes:
            hottest = getattr(lane.tier, "hottest", None)
            if hottest is not None:
                self.wishes.were_hot(hottest(self._warm_left))
                break

    def close(self, timeout_s: float) -> None:
        """End the thread after the slice under way, which may hang. Idempotent."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def asked(self, now_s: float) -> None:
        """A request came: nothing is loaded ahead until it has been quiet again."""
        self._asked_s = now_s

    def ended(self, path: Sequence[bytes], tenant: str) -> None:
        """A request ended. Under the lock."""
        if self.enabled:
            self.wishes.ended(path, tenant, self._clock.now_s())

    def credit(self, flight: Flight) -> None:
        """What came ahead for `flight`, and is asked for the first time, is its tier's gift.

        Under the lock, before the flight is counted: from then on it is RAM's.
        """
        if not self._lanes:
            return
        for entry in flight.entries[: flight.ram_blocks]:
            if entry.ahead:
                lane = self._lanes[entry.ahead - 1]
                lane.hit_tokens_total += self._block_tokens
                lane.hit_bytes_total += entry.payload_bytes
                entry.ahead = 0
                flight.ram_blocks -= 1
                self._used_total += 1

    def stats(self) -> Mapping[str, float]:
        return {
            "ahead_blocks_total": self._blocks_total,
            "ahead_bytes_total": self._bytes_total,
            "ahead_used_blocks_total": self._used_total,
            "ahead_shed_total": self._shed_total,
            "ahead_sessions": len(self.wishes),
        }

    def step(self) -> float:
        """Load one slice if it is quiet; returns for how many seconds to do nothing now."""
        wait_s = self.busy_s()
        if wait_s:
            self._shed_total += bool(self._path) and not self._is_shed
            self._is_shed = True
            return wait_s
        self._is_shed = False
        wanted = self._wanted()
        if not wanted:
            return PAUSE_S
        start, blocks, lane_index = self._read(wanted)
        if start + len(blocks) < len(wanted):
            self.wishes.give_up(self._path)
            self._path = ()
        if not blocks:
            return 0.0
        return self._keep(wanted[: start + len(blocks)], blocks, lane_index) / self._bytes_per_s_max

    def _run(self) -> None:
        wait_s = QUIET_S
        while not self._closed.wait(wait_s):
            try:
                wait_s = self.step()
            except Exception:
                logger.exception("loading ahead has ended; requests load what they need themselves")
                return

    def busy_s(self) -> float:
        """Seconds until it may be quiet, 0.0 if it is."""
        now_s = self._clock.now_s()
        if self._flights.alive or self._loads.live or any(lane.writing for lane in self._lanes):
            self._asked_s = now_s
        return max(0.0, self._asked_s + QUIET_S - now_s)

    def _wanted(self) -> Sequence[bytes]:
        """The path up to the end of the next slice; empty if there is no wish, or no room."""
        now_s = self._clock.now_s()
        with self._lock:
            room = self._resident.room_blocks()
            if room < 1:
                return ()
            if wanted := self._slice(now_s, room):
                return wanted
            self._is_warming = False
            for path, tenant in self.wishes.due(now_s):
                if path[-1] not in self._resident.entries:
                    self._path, self._facts = path, RequestFacts(tenant=tenant)
                    if wanted := self._slice(now_s, room):
                        return wanted
        self._path, self._facts = (), RequestFacts()
        while self._warm_left > 0 and not self.busy_s():
            chain = self.wishes.next_hot()
            if chain is None:
                self._warm_left = 0
                break
            with self._lock:
                self._path, self._is_warming = chain, True
                if wanted := self._slice(now_s, room):
                    return wanted
        return ()

    def _slice(self, now_s: float, room: int) -> Sequence[bytes]:
        """`_path` up to the end of its next slice, () if all of it is here. Under the lock."""
        path = self._path
        here = len(self._resident.lookup(path, 0, now_s))
        if self._is_warming:
            room = min(room, max(0, self._warm_left))
        blocks = min(room, self._slice_blocks_max, max(1, SLICE_BYTES // max(1, self._size_seen)))
        return path[: here + blocks] if blocks and here < len(path) else ()

    def _read(self, wanted: Sequence[bytes]) -> tuple[int, list[Buffer], int]:
        """Blocks [start, ...) of `wanted`, as far as one lane has them in order, and which."""
        now_s = self._clock.now_s()
        with self._lock:
            start = len(self._resident.lookup(wanted, 0, now_s))
        missing = wanted[start:]
        for index, lane in enumerate(self._lanes):
            if not missing or not lane.available(now_s):
                continue
            try:
                found = lane.call("read", functools.partial(self._loads.read, lane.tier, missing))
            except TierUnavailable:
                continue
            blocks = [block for block in itertools.takewhile(_is_there, found) if block is not None]
            if blocks:
                return start, blocks, index
        return start, [], 0

    def _keep(self, path: Sequence[bytes], blocks: list[Buffer], lane_index: int) -> int:
        """Move the end of `path` in, as far as there is room still; returns its bytes."""
        size = sum(memoryview(block).nbytes for block in blocks)
        with self._lock:
            before = len(self._resident.entries)
            self._keeper.keep(
                path,
                blocks,
                self._facts,
                touched=0,
                now_s=self._clock.now_s(),
                source=lane_index,
                speculative=True,
            )
            came = len(self._resident.entries) - before
            self._size_seen = size // len(blocks)
            self._blocks_total += came
            self._bytes_total += size
            self._warm_left -= came
        if not came:  # no room any more, or somebody else was faster
            self._path = ()
        return size


def _is_there(block: Buffer | None) -> bool:
    return block is not None
