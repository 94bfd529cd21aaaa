"""A lane: one slower tier with its I/O threads, bounded write queue, breaker and counters.

It refuses to let its tier's faults out: what a tier raises, or does not finish by the deadline, is
a counted failure that the breaker judges. Threads belong to one tier, so a hung disk cannot take
those that read from another tier; a hung call keeps its own thread, and while any call is overdue
the tier is not asked at all. Writes never wait: a full queue or a shut breaker drops them, counted.

Reads and writes have a breaker each: a full disk can still be read. Reads go before writes, of
which one call runs at a time, in order.

A tier that has a `probe` is asked for a sign of life by the lane itself, beside the requests: at
once after a failure, so that few requests wait for a server that is gone, and whenever the breaker
would let somebody try, so that none does.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from bul.cache.breaker import BREAKER_PAUSE_S_MAX, Breaker
from bul.cache.contract import BlockRecord, Tier
from bul.cache.placement import BreakEven, PrefillRate
from bul.cache.write_queue import Batch, Removal, WriteQueue
from bul.clock import Clock
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable

__all__ = ["Lane", "make_lanes"]

READS_QUEUED_MAX = 4096
STATS_WAIT_S = 0.02
PROBE_PAUSE_S_MAX = 5.0
"""Where a probe costs no request anything, a tier that is back is found sooner."""
"""`stats` gives the last known numbers of a tier that takes longer than this."""

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

Vote = Literal["match", "read", "write", "stats"]


class _Call:
    """A call of the tier under way. `overdue` once it is past the deadline."""

    __slots__ = ("overdue", "started_s", "vote")

    def __init__(self, vote: Vote, started_s: float) -> None:
        self.vote = vote
        self.started_s = started_s
        self.overdue = False


class Lane:
    """`threads` >= 1. `deadline_s` is of one call. The lane owns the tier and closes it."""

    def __init__(
        self,
        tier: Tier,
        *,
        threads: int,
        deadline_s: float,
        queue_bytes_max: int,
        gate: BreakEven,
        clock: Clock,
    ) -> None:
        self.tier = tier
        self.gate = gate
        self.deadline_s = deadline_s
        self._threads_max = threads
        self._clock = clock
        self._probe: Callable[[], None] | None = getattr(tier, "probe", None)
        self._probing = False
        pause_s_max = PROBE_PAUSE_S_MAX if self._probe else BREAKER_PAUSE_S_MAX
        self._breakers = {vote: Breaker(pause_s_max=pause_s_max) for vote in ("read", "write")}
        self._changed = threading.Condition()
        self._reads: collections.deque[Callable[[], None]] = collections.deque()
        self._writes = WriteQueue(queue_bytes_max)
        self._writing = False
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._calls: set[_Call] = set()
        self._overdue = 0
        self._closed = False
        self._closed_well = False
        self._asking_stats = False
        self._tier_stats: Mapping[str, float] = {}
        self.hit_tokens_total = 0
        self.hit_bytes_total = 0
        self._errors_total = 0
        self._overdue_total = 0
        self._written_total = 0
        self._dropped_total = 0
        self._unavailable_total = 0

    def available(self, now_s: float) -> bool:
        """Whether to ask the tier at all; False counts as a skipped ask."""
        with self._changed:
            free = not self._closed and not self._overdue and len(self._reads) < READS_QUEUED_MAX
            free = free and self._may_ask(now_s)
            self._unavailable_total += not free
            return free

    @property
    def writing(self) -> bool:
        """Whether writes are queued or under way."""
        return self._writing or bool(self._writes)

    def read(self, job: Callable[[], None]) -> None:
        """Run `job` on a thread of this lane, before any write. `job` must not raise."""
        with self._changed:
            self._reads.append(job)
            self._wake()

    def write(self, record: BlockRecord) -> bool:
        """Queue one block; False (counted) if there is no room or the tier is shut off."""
        with self._changed:
            shut = self._closed or self._overdue
            if (
                shut
                or not self._breakers["write"].allow(self._clock.now_s())
                or not self._writes.add(record)
            ):
                self._dropped_total += 1
                return False
            self._wake()
            return True

    @property
    def keeps_versions(self) -> bool:
        """Several hosts write there, and the newest version of a general value wins."""
        return hasattr(self.tier, "delete_values")

    def remove(
        self, keys: tuple[bytes, ...] | None, version: int = 0
    ) -> concurrent.futures.Future[int]:
        """Delete `keys`, or everything, behind the writes queued so far; how many were there.

        The future ends with the tier's call, or with 0 if that failed or could not be queued.
        """
        removal = Removal(keys, concurrent.futures.Future(), version)
        with self._changed:
            if self._closed or not self._writes.remove(removal):
                removal.done.set_result(0)
            else:
                self._wake()
        return removal.done

    def call(self, vote: Vote, act: Callable[[], _T]) -> _T:
        """Run `act` on this thread, timed and judged. Whatever it raises is TierUnavailable.

        vote: the breaker that hears the outcome. "match" tells the read breaker only of failures:
        an index in RAM answers also when every read of the disk fails.
        """
        token = _Call(vote, self._clock.now_s())
        with self._changed:
            if self._is_shut_off(vote, act):
                raise TierUnavailable(f"tier {self.tier.name} is shut off by its breaker")
            self._calls.add(token)
        error: Exception | None = None
        try:
            return act()
        except Exception as caught:
            error = caught
            raise TierUnavailable(f"tier {self.tier.name}: {caught!r}") from caught
        finally:
            now_s = self._clock.now_s()
            with self._changed:
                self._calls.discard(token)
                self._errors_total += error is not None
                # An overdue call was judged when it became overdue.
                if not token.overdue and (vote != "match" or error is not None):
                    self._judge(vote, ok=error is None, now_s=now_s)
                self._overdue -= token.overdue

    def nothing_there(self) -> None:
        """A probe found no block to read: that is as well as the tier can show itself."""
        with self._changed:
            if self._breakers["read"].is_open:
                self._judge("read", ok=True, now_s=self._clock.now_s())

    def tick(self, now_s: float) -> bool:
        """Mark calls that are past the deadline; whether any became so just now."""
        with self._changed:
            late = [
                call
                for call in self._calls
                if not call.overdue and now_s - call.started_s >= self.deadline_s
            ]
            for call in late:
                call.overdue = True
                self._overdue += 1
                self._overdue_total += 1
                self._judge(call.vote, ok=False, now_s=now_s)
            return bool(late)

    def flush(self, timeout_s: float) -> bool:
        """Wait until the write queue is empty and written; False after `timeout_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._writes and not self._writing, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Stop the threads and close the tier; False if that hangs or fails."""
        with self._changed:
            self._closed = True
            self._dropped_total += self._writes.drop_all()
            self._changed.notify_all()
        closer = threading.Thread(target=self._close, daemon=True, name="bul-cache-close")
        closer.start()
        closer.join(timeout_s)
        return self._closed_well

    def stats(self) -> Mapping[str, float]:
        """The tier's own numbers, as of the last time it answered, and the lane's."""
        with self._changed:
            if not (self._overdue or self._closed or self._asking_stats):
                self._asking_stats = True
                self._reads.append(self._ask_stats)
                self._wake()
                self._changed.wait_for(lambda: not self._asking_stats, STATS_WAIT_S)
            return {
                **self._tier_stats,
                "hit_tokens_total": self.hit_tokens_total,
                "hit_bytes_total": self.hit_bytes_total,
                "call_errors_total": self._errors_total,
                "calls_overdue_total": self._overdue_total,
                "calls_overdue": self._overdue,
                "read_breaker_open": self._breakers["read"].is_open,
                "write_breaker_open": self._breakers["write"].is_open,
                "breaker_opened_total": sum(b.opened_total for b in self._breakers.values()),
                "skipped_total": self._unavailable_total,
                "queue_written_blocks_total": self._written_total,
                "queue_dropped_blocks_total": self._dropped_total,
                "queue_bytes": self._writes.bytes,
                "loads_refused_total": self.gate.refused_total,
                "load_bytes_per_s": self.gate.bytes_per_s,
            }

    def _may_ask(self, now_s: float) -> bool:
        """Whether the breaker lets a request ask; a tier with a probe is probed instead."""
        breaker = self._breakers["read"]
        was_open = breaker.is_open
        allowed = breaker.allow(now_s)
        if allowed and was_open and self._probe is not None:
            self._start_probe()
            return False
        return allowed

    def _is_shut_off(self, vote: Vote, act: object) -> bool:
        """Of a tier with a probe nothing else is asked while its breaker is open: who was queued
        before it opened goes on at once.
        """
        probed = self._probe is not None and act is not self._probe
        return probed and vote in ("match", "read") and self._breakers["read"].is_open

    def _judge(self, vote: Vote, *, ok: bool, now_s: float) -> None:
        if vote == "stats":
            return
        breaker = self._breakers["write" if vote == "write" else "read"]
        breaker.record(ok=ok, now_s=now_s)
        if not ok and vote != "write" and not breaker.is_open:
            self._start_probe()

    def _start_probe(self) -> None:
        if self._probe is None or self._probing or self._closed:
            return
        self._probing = True
        self._reads.appendleft(self._run_probe)
        self._wake()

    def _run_probe(self) -> None:
        """A call like others: its failure is judged, and so asks for the next probe."""
        with self._changed:
            self._probing = False
        if self._probe is not None:
            with contextlib.suppress(TierUnavailable):
                self.call("read", self._probe)

    def _ask_stats(self) -> None:
        stats: Mapping[str, float] = {}
        with contextlib.suppress(TierUnavailable):
            stats = self.call("stats", lambda: dict(self.tier.stats()))
        with self._changed:
            self._tier_stats = stats or self._tier_stats
            self._asking_stats = False
            self._changed.notify_all()

    def _close(self) -> None:
        for thread in self._threads:
            thread.join()
        try:
            self.tier.close()
        except Exception:
            logger.exception("tier %s could not be closed", self.tier.name)
        else:
            self._closed_well = True

    def _wake(self) -> None:
        waiting = len(self._reads) + len(self._writes)
        if waiting > self._idle and len(self._threads) < self._threads_max and not self._closed:
            thread = threading.Thread(
                target=self._work, daemon=True, name=f"bul-cache-{self.tier.name}"
            )
            self._threads.append(thread)
            thread.start()
        else:
            self._changed.notify_all()  # not `notify`: `flush` waits on it too

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._reads and not self._may_write():
                    if self._closed:
                        return
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                job = self._reads.popleft() if self._reads else None
                batch = None if job else self._writes.take()
                self._writing |= batch is not None
            if job is not None:
                self._run(job)
            elif batch is not None:
                self._write(batch)

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:
            # Our own mistake; the load's deadline still ends it, and the thread lives on.
            logger.exception("a read job of tier %s raised", self.tier.name)

    def _may_write(self) -> bool:
        """One writer at a time: what was queued first is written first."""
        return bool(self._writes) and not self._writing

    def _write(self, batch: Batch) -> None:
        written = 0
        with contextlib.suppress(TierUnavailable):  # counted by `call`; the drop is counted below
            written = self.call("write", lambda: batch.write(self.tier))
        with self._changed:
            self._writing = False
            self._writes.written(batch)
            self._written_total += written
            self._dropped_total += len(batch.records) - written
            self._changed.notify_all()


def make_lanes(
    tiers: Sequence[Tier], config: KVCacheConfig, prefill: PrefillRate, clock: Clock
) -> tuple[Lane, ...]:
    """A lane for each tier, each with its share of `num_workers`, at least one."""
    share, rest = divmod(config.num_workers, max(1, len(tiers)))
    return tuple(
        Lane(
            tier,
            threads=max(1, share + (position < rest)),
            deadline_s=config.tier_deadline_s,
            queue_bytes_max=config.write_queue_bytes_max,
            gate=BreakEven(prefill, enabled=config.break_even),
            clock=clock,
        )
        for position, tier in enumerate(tiers)
    )
