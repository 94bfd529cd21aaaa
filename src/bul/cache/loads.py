"""Loads: what a flight misses in RAM, fetched from the slower tiers in windows.

It refuses to wait: jobs run on the lanes' threads, the engine's lock is taken only to move blocks
in, and past its deadline a load ends with what has come in order so far; the rest is computed.

    keys      [0, ram) | window 0 | window 1 | window 2 | [end, ...) is not in this tier
    windows of `prefetch_size` blocks are read at the same time by the lane's threads and land in
    order; the first miss ends the load. With `prefetch_size` 0 one block is read after another.

Each tier is asked in turn for what is still missing, fastest first.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

from bul.blocks.prefix import Buffer
from bul.cache.contract import Tier
from bul.cache.flights import Flight, Flights
from bul.cache.keeper import Keeper
from bul.cache.lane import Lane
from bul.cache.traced import LoadFacts, load_told, skip_told
from bul.clock import Clock
from bul.errors import TierUnavailable

__all__ = ["Loads"]


class _Load:
    """One flight's load from one lane; guarded by the engine's lock."""

    __slots__ = (
        "deadline_s",
        "done",
        "end",
        "first",
        "flight",
        "index",
        "lane",
        "next",
        "outcome",
        "parts",
        "size",
        "started_s",
    )

    def __init__(self, flight: Flight, index: int, lane: Lane, now_s: float) -> None:
        self.flight = flight
        self.index = index
        self.lane = lane
        self.started_s = now_s
        self.deadline_s = now_s + lane.deadline_s
        self.next = len(flight.entries)
        self.end = len(flight.keys)
        self.parts: dict[int, list[Buffer | None]] = {}
        self.size = 0
        self.outcome = ""
        self.done = False
        self.first = self.next

    def facts(self, now_s: float) -> LoadFacts:
        """For its span, at its end."""
        return LoadFacts(
            tier=self.lane.tier.name,
            started_s=self.started_s,
            ended_s=now_s,
            asked_blocks=len(self.flight.keys) - self.first,
            blocks=self.next - self.first,
            size_bytes=self.size,
            outcome=self.outcome or ("hit" if self.size else "miss"),
        )


class Loads:
    """All loads of one engine. `lock` is the engine's; `call_due` runs callbacks, without it.

    block_bytes: size of every block if known, else 0; a block of another size is a lie.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        flights: Flights,
        keeper: Keeper,
        *,
        lock: threading.Lock,
        call_due: Callable[[], None],
        clock: Clock,
        window_blocks: int,
        block_tokens: int,
        block_bytes: int,
    ) -> None:
        self.lanes = lanes
        self.flights = flights
        self.keeper = keeper
        self._lock = lock
        self._call_due = call_due
        self._clock = clock
        self._window_blocks = window_blocks
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes
        self._size_seen = block_bytes
        self._live: set[_Load] = set()
        self.timeouts_total = 0

    @property
    def live(self) -> int:
        """Loads under way."""
        return len(self._live)

    def start(self, flight: Flight, now_s: float, index: int = 0) -> bool:
        """Begin with the first lane from `index` on that may be asked; False if none may.

        Under the lock.
        """
        for position in range(index, len(self.lanes)):
            lane = self.lanes[position]
            if lane.available(now_s):
                load = _Load(flight, position, lane, now_s)
                self._live.add(load)
                lane.read(functools.partial(self._begin, load))
                return True
            if flight.facts.span is not None:
                self.flights.due.append(skip_told(flight.facts.span, lane.tier.name))
        return False

    def tick(self, now_s: float) -> None:
        """End loads that are past their deadline, or whose tier hangs. Under the lock."""
        hung = {lane for lane in self.lanes if lane.tick(now_s)}
        for load in list(self._live):
            if load.lane in hung or now_s >= load.deadline_s:
                self.timeouts_total += 1
                load.outcome = "timed_out"
                self._end(load, now_s)
                self.flights.loaded(load.flight)

    def stop(self) -> None:
        """End all loads; their flights settle with what has come. Under the lock."""
        now_s = self._clock.now_s()
        for load in list(self._live):
            load.outcome = "closed"
            self._end(load, now_s)
            self.flights.loaded(load.flight)

    # on a lane's thread

    def _begin(self, load: _Load) -> None:
        """Ask how much is there, ask the gate, read."""
        keys, lane = load.flight.keys[load.next :], load.lane
        try:
            there = lane.call("match", lambda: max(0, min(len(keys), int(lane.tier.match(keys)))))
            if not there:
                lane.nothing_there()
        except TierUnavailable:
            there, load.outcome = 0, "unavailable"
        with self._lock:
            load.end = load.next + there
            if load.done or not self._is_worth_it(load, there):
                load.end = load.next
                load.outcome = load.outcome or ("refused" if there else "miss")
            starts = range(load.next, load.end, max(1, self._window_blocks))
            if not starts:
                self._land(load)
        if not starts:
            self._call_due()
        elif self._window_blocks:
            for start in starts[1:]:
                lane.read(functools.partial(self._read, load, start))
            self._read(load, starts[0])
        else:
            for start in starts:
                self._read(load, start)

    def _is_worth_it(self, load: _Load, there: int) -> bool:
        if not there or load.flight not in self.flights.alive:
            return False
        return (
            not self._size_seen
            or load.lane.gate.ask(there * self._size_seen, there * self._block_tokens).load
        )

    def _read(self, load: _Load, start: int) -> None:
        """Read one window and let it land."""
        with self._lock:
            if load.done or start >= load.end:
                return
            keys = load.flight.keys[start : min(load.end, start + max(1, self._window_blocks))]
        tier = load.lane.tier
        try:
            blocks = load.lane.call("read", functools.partial(self.read, tier, keys))
        except TierUnavailable:
            blocks, load.outcome = [None] * len(keys), "unavailable"
        with self._lock:
            if not load.done:
                load.parts[start] = blocks
                self._land(load)
        self._call_due()

    def read(self, tier: Tier, keys: Sequence[bytes]) -> list[Buffer | None]:
        """What `tier` has of `keys`; ValueError (a failure of the tier) for what is no answer."""
        blocks: object = tier.get(keys)
        if not isinstance(blocks, list) or len(blocks) != len(keys):
            raise ValueError(f"asked for {len(keys)} blocks, got {type(blocks).__name__}")
        for block in blocks:
            if block is None:
                continue
            if not isinstance(block, bytes | bytearray | memoryview):
                raise ValueError(f"a block must be a buffer, was {type(block).__name__}")  # noqa: TRY004 - the tier's
            size = block.nbytes if isinstance(block, memoryview) else len(block)
            if self._block_bytes and size != self._block_bytes:
                raise ValueError(f"a block of {size} bytes, not {self._block_bytes}")
        return blocks

    # under the lock

    def _land(self, load: _Load) -> None:
        """Move in what has come in order; end the load at a miss or when all is there."""
        while not load.done and load.next in load.parts:
            part = load.parts.pop(load.next)
            miss = next((i for i, block in enumerate(part) if block is None), len(part))
            blocks = [block for block in part[:miss] if block is not None]
            if blocks:
                self._move(load, blocks)
            if miss < len(part):
                load.end = load.next
        if not load.done and load.next >= load.end:
            now_s = self._clock.now_s()
            self._end(load, now_s)
            more = load.flight in self.flights.alive and load.next < len(load.flight.keys)
            if not (more and self.start(load.flight, now_s, load.index + 1)):
                self.flights.loaded(load.flight)

    def _move(self, load: _Load, blocks: list[Buffer]) -> None:
        flight, now_s = load.flight, self._clock.now_s()
        path = flight.keys[: load.next + len(blocks)]
        entries = self.keeper.keep(
            path, blocks, flight.facts, touched=flight.touched, now_s=now_s, source=load.index
        )
        flight.touched = len(path)
        self.flights.extend(flight, entries, now_s)
        load.next = len(path)
        size = sum(entry.payload_bytes for entry in entries)
        load.size += size
        self._size_seen = size // len(entries)
        load.lane.hit_tokens_total += len(entries) * self._block_tokens
        load.lane.hit_bytes_total += size

    def _end(self, load: _Load, now_s: float) -> None:
        load.done = True
        if load.size:
            load.lane.gate.observe(load.size, now_s - load.started_s)
        load.parts.clear()
        self._live.discard(load)
        if (span := load.flight.facts.span) is not None:
            self.flights.due.append(load_told(span, load.facts(now_s)))
