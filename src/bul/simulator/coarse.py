"""The same region, coarser and some 30 times faster: fluid between ticks, exact arrivals.

For long traces without blocks. Decisions come from the production `decide`, on the same signals.
Within a tick the number of replicas and the length of a decode call stand still, and then all
can be said with a few array operations:

- Requests go round `EVEN` of the replicas, each of which has a queue of prompts of its own:
  recursions of Lindley's, wait_i = c_i - min(0, min_{j<=i} c_j), with c the running sum of service
  minus gap. `least_conn` would look at replies too.
- Replies end when the tokens that every sequence has decoded pass their mark (as in `replica.py`).
  Marks are counted in bins of `BIN_TOKENS`, so that requests under way at any moment are those
  before, plus arrivals, minus marks passed: no step in time is needed.
- What exceeds all slots waits for one in a common line, first come, first served.

A replica that drains is billed for one mean reply. `bul scale simulate --coarse` prints its error
against the exact simulation of `cluster.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import deque
from typing import Generic, TypeVar

import numpy as np

from bul.scaling.decide import Policy, decide
from bul.scaling.decision import Direction
from bul.scaling.signals import Signals
from bul.simulator.arrivals import Arrivals, Floats, Ints
from bul.simulator.replica import ReplicaProfile
from bul.simulator.report import RegionReport, Step

__all__ = ["CoarseRegion", "slot_waits"]

State = TypeVar("State")
QUANTILE_TICKS = 4
BIN_TOKENS = 4.0
BINS = 8192
"""Replies longer than their product end there: 32,768 tokens."""
BLOCK = 128
"""Bins that are summed up at once where a line may reach over all of them."""
EVEN = 0.84
"""A burst goes to those with fewer replies under way, not to all in turn: it is as if there were
fewer queues. Fitted to the exact replay of 12 hours, fixed fleets of 8 to 16, both profiles."""
GOLDEN = 0.618034
"""7.4 queues are 7 in some ticks and 8 in others, evenly mixed."""
PARTS = 4
"""Of a tick: where not even the last arrival of a part finds all slots taken, none does."""
PREFILL_SHARE_MAX = 0.95
"""Replies go on, slowly, while prompts fill a replica."""
_NONE = np.empty(0)


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """Arrivals as the replay needs them. since_s: from their tick's begin. turns: decode calls that
    a prompt waits for. replies: bins of output tokens. totals: per tick, of prompt tokens, seconds
    alone, turns, output tokens, since_s. ranks: arrivals up to the end of each of a tick's PARTS.
    """

    since_s: Floats
    alone_s: Floats
    turns: Floats
    replies: Floats
    edges: list[int]
    totals: list[list[float]]
    ranks: list[list[int]]


@functools.lru_cache(maxsize=1)
def _work(arrivals: Arrivals, profile: ReplicaProfile, tick_s: float) -> _Work:
    """The same for every policy, so the last one is kept: a quarter of a run's time."""
    at_s, tokens = arrivals.at_s, arrivals.prompt_tokens.astype(np.float64)
    alone_s = tokens * (1.0 + profile.prefill_growth * tokens / 2) / profile.prefill_tokens_per_s
    turns = np.ceil(tokens / profile.chunk_tokens)
    outputs = arrivals.output_tokens.astype(np.float64)
    ticks = math.ceil(float(at_s[-1]) / tick_s) if len(at_s) else 0
    edges = np.searchsorted(at_s, np.arange(ticks + 1) * tick_s)
    edges[-1] = len(at_s)
    since_s = at_s - np.repeat(np.arange(ticks) * tick_s, np.diff(edges))
    summed = (tokens, alone_s, turns, outputs, since_s)
    sums = [np.concatenate(([0.0], np.cumsum(x)))[edges] for x in summed]
    totals = np.diff(np.array(sums), axis=1).T
    inner = (np.arange(ticks)[:, None] + np.arange(1, PARTS + 1) / PARTS) * tick_s
    ranks = np.searchsorted(at_s, inner)
    ranks[:, -1] = edges[1:]
    ranks -= edges[:-1, None]
    replies = outputs / BIN_TOKENS
    return _Work(since_s, alone_s, turns, replies, edges.tolist(), totals.tolist(), ranks.tolist())


def slot_waits(free_at: Floats, started: Floats, ends: Floats) -> Floats:
    """How long arrivals wait for a slot; the k-th takes the one that is k-th to be free.

    free_at: when slots that are taken already become free, ascending, one per arrival (inf: no
    such slot). started, ends: of the arrivals, if none had to wait. Whoever takes a slot leaves
    it later, so the times are the smallest of `free_at` and of the ends moved by the waits. They
    are found by going round until nothing changes: once per generation of replies that end within
    the tick, most often twice.
    """
    count, times, left = len(started), free_at, _NONE
    while True:
        waits = np.maximum(times - started, 0.0)
        ends_now = ends + waits
        # The times only ever become earlier, so that an end after the last one is never taken.
        new_left = ends_now[ends_now <= times[-1]]
        if len(new_left) == len(left) and (new_left == left).all():
            return waits
        left = new_left
        times = np.concatenate((free_at, left))
        times.sort()
        times = times[:count]


def _bins(spoken_s: Floats, replies: Floats, begin: float, per_s: float) -> Ints:
    """Bins of the marks of replies that begin at `spoken_s`, which is changed."""
    marks = np.multiply(spoken_s, per_s, out=spoken_s)
    marks += replies
    marks += begin
    return np.minimum(marks, BINS - 1.0, out=marks).astype(np.int64)


def _passed_at(marks: Floats, begin: int, end: int) -> Floats:
    """When the marks from the `begin`-th up to the `end`-th are passed: the middles of their bins.

    Only blocks with such marks are looked into: a line of hours reaches over all 8,192 bins.
    """
    blocks = np.add.reduce(marks.reshape(-1, BLOCK), axis=1).cumsum()
    k = int(blocks.searchsorted(begin, side="right"))
    last = int(blocks.searchsorted(end - 1, side="right"))
    passed = marks[k * BLOCK : (last + 1) * BLOCK].cumsum()
    before = int(blocks[k - 1]) if k else 0
    bins = passed.searchsorted(np.arange(begin - before, end - before), side="right")
    return np.asarray(bins + (k * BLOCK + 0.5), dtype=np.float64)


def _spread(left_s: Floats, n: int) -> Floats:
    """The same work over `n` queues: queue k takes over what was in k, k + n, k + 2n and so on."""
    spread = np.zeros(n)
    for first in range(0, len(left_s), n):
        part = left_s[first : first + n]
        spread[: len(part)] += part
    return spread


class CoarseRegion(Generic[State]):
    """One run, same arguments and report as `cluster.Region`."""

    def __init__(
        self,
        profile: ReplicaProfile,
        policy: Policy[State],
        state: State,
        *,
        replicas: int,
        cold_start_s: float,
        tick_s: float = 15.0,
        slo_ttft_s: float = 0.5,
        ttft_idle_ms: float = 0.0,
    ) -> None:
        self._profile = profile
        self._policy = policy
        self._state = state
        self._cold_start_s = cold_start_s
        self._tick_s = tick_s
        self._slo_s = slo_ttft_s
        self._ttft_idle_ms = ttft_idle_ms
        self._ready = replicas
        self._pending: list[float] = []  # when each will be ready, ascending
        self._level = 0.0  # requests that hold or want a slot
        self._mean_level = self._mean_waiting = 0.0
        self._marks = np.zeros(2 * BINS)
        self._passed = 0.0  # tokens that every sequence has decoded, in bins of `_marks`
        self._left_s = np.zeros(replicas)  # prompt work that each replica has queued
        self._left_total_s = 0.0
        self._dither = 0.0
        self._reply_tokens = self._context_tokens = 1.0  # of a mean sequence
        self._output = 0.0  # of the tick before: a reply's length is known when it is over
        self._turn_s = profile.decode_base_s
        self._billed_s: list[float] = []
        self._steps: list[Step] = []
        self._most = replicas
        self._recent: deque[Floats] = deque(maxlen=QUANTILE_TICKS)
        self._wants_quantile = "ttft_p95_ms" in policy.needs

    def run(self, arrivals: Arrivals) -> RegionReport:
        """Play all arrivals in ticks."""
        work = _work(arrivals, self._profile, self._tick_s)
        ttft = np.empty(len(arrivals))
        for k, (prompt, alone_s, turns, output, since_s) in enumerate(work.totals):
            i, j = work.edges[k], work.edges[k + 1]
            per_s = self._rate(j - i, prompt, alone_s, turns, output)
            if i == j:
                part = _NONE
                self._left_s = np.maximum(self._left_s - self._tick_s, 0.0)
                self._pass(per_s, 0, 0.0)
            else:
                part = self._play(work, slice(i, j), work.ranks[k], per_s)
                part = np.add(part, self._profile.overhead_s, out=ttft[i:j])
                self._pass(per_s, j - i, since_s)
            self._tick((k + 1) * self._tick_s, part, prompt)
            self._output = output
        return RegionReport(
            arrived_s=arrivals.at_s,
            ttft_s=ttft,
            tick_s=self._tick_s,
            replica_seconds=np.array(self._billed_s),
            steps=tuple(self._steps),
            replicas_max=self._most,
        )

    def _rate(
        self, count: int, prompt: float, alone_s: float, turns: float, output: float
    ) -> float:
        """Bins of marks that pass in a second, from the load that this tick will see.

        The level moves from where it is towards arrivals x stay, as a fluid; two rounds, since the
        stay depends on the level.
        """
        profile, n, tick_s = self._profile, self._ready, self._tick_s
        if count:
            self._reply_tokens = output / count
            self._context_tokens = prompt / count + self._reply_tokens / 2
        share = min((alone_s + self._left_total_s) / (tick_s * n), PREFILL_SHARE_MAX)
        turn_s, held_s = self._turn_s, (alone_s + turns * self._turn_s) / max(count, 1)
        for _ in range(2):
            stay_s = held_s + self._reply_tokens * turn_s / (1.0 - share)
            towards = count * stay_s / tick_s
            mean = towards + (self._level - towards) * (1.0 - math.exp(-tick_s / stay_s)) * (
                stay_s / tick_s
            )
            running = min(mean / n, profile.slots)
            turn_s = profile.decode_s(running, running * self._context_tokens)
        self._turn_s = turn_s
        return (1.0 - share) / turn_s / BIN_TOKENS

    def _play(self, work: _Work, part: slice, ranks: list[int], per_s: float) -> Floats:
        """Arrivals of one tick against the present replicas; returns their TTFT in seconds, less
        the overhead.
        """
        since_s = work.since_s[part]
        queued_s, service_s = self._prefill(since_s, work.turns[part], work.alone_s[part])
        first = int(self._passed)
        begin, replies = self._passed - first, work.replies[part]
        ttft = queued_s + service_s
        marks = self._marks[first : first + BINS]
        bins = _bins(since_s + ttft, replies, begin, per_s)
        np.add.at(marks, bins, 1.0)
        self._mean_waiting = 0.0
        room = self._ready * self._profile.slots - self._level
        if ranks[-1] <= room:
            return ttft
        started = since_s * per_s
        started += begin
        ended = np.add.accumulate(marks[: int(started[-1]) + 1])
        if self._may_wait(room, ranks, ended, per_s):
            over = np.arange(1.0 - room, 1.0 - room + len(ttft))
            over = over[: len(ttft)] - ended[started.astype(np.int64)]
            np.maximum(over, 0.0, out=over)
            waiting = float(np.add.reduce(over))
            if waiting > 0.0:
                self._mean_waiting = waiting / len(over)
                np.subtract.at(marks, bins, 1.0)
                ends = service_s * per_s
                ends += replies
                ends += started
                waits = self._slot_waits(marks, started, ends)
                ttft = np.maximum(queued_s, waits / per_s) + service_s
                np.add.at(marks, _bins(since_s + ttft, replies, begin, per_s), 1.0)
        return ttft

    def _may_wait(self, room: float, ranks: list[int], ended: Floats, per_s: float) -> bool:
        """Whether any arrival could find all slots taken; cheaper than to ask for each."""
        begin, part_bins = self._passed - int(self._passed), per_s * self._tick_s / PARTS
        before = 0
        for k, rank in enumerate(ranks):
            if rank > before and rank - ended[int(begin + k * part_bins)] > room:
                return True
            before = rank
        return False

    def _slot_waits(self, marks: Floats, started: Floats, ends: Floats) -> Floats:
        """How long each waits for one of all slots, in bins, first come, first served.

        marks: without the ends of those who come now.
        """
        count, level = len(started), int(self._level)
        # Below 0: so many are free. Above: so many will be taken by those who wait already.
        first = level - self._ready * self._profile.slots
        begin, end = max(first, 0), min(first + count, level)
        free_at = np.full(count, np.inf)
        free_at[: max(-first, 0)] = -np.inf
        if begin < end:
            free_at[begin - first : end - first] = _passed_at(marks, begin, end)
        return slot_waits(free_at, started, ends)

    def _pass(self, per_s: float, count: int, since_s: float) -> None:
        """The tick is over: replies whose marks were passed are gone.

        The mean level is what a region's own metrics show: over the window, not at its end.
        """
        tick_s = self._tick_s
        first, passed = int(self._passed), self._passed + per_s * tick_s
        end = min(int(passed), first + BINS)
        ended = np.add.accumulate(self._marks[first:end])
        gone = gone_mean = 0.0
        if end > first:
            gone, gone_mean = float(ended[-1]), float(np.add.reduce(ended)) / len(ended)
        self._mean_level = max(self._level + count - since_s / tick_s - gone_mean, 0.0)
        self._level = max(self._level + count - gone, 0.0)
        self._marks[first:end] = 0.0
        if passed >= BINS:
            self._marks[:BINS], self._marks[BINS:] = self._marks[BINS:].copy(), 0.0
            passed -= BINS
        self._passed = passed

    def _prefill(self, since_s: Floats, turns: Floats, alone_s: Floats) -> tuple[Floats, Floats]:
        """Time in the queue for prefill, and in prefill, of requests that go round the replicas.

        The k-th goes to row 1 + k // n, column k % n: what its queue has to do before it is the sum
        of the rows above, and the last row's is what the tick leaves.
        """
        self._dither = (self._dither + GOLDEN) % 1.0
        n, count = max(int(self._ready * EVEN + self._dither), 1), len(since_s)
        if n != len(self._left_s):
            self._left_s = _spread(self._left_s, n)
        work_s = np.empty((-(-count // n) + 1) * n)
        work_s[:n] = self._left_s
        service_s = np.multiply(turns, self._turn_s, out=work_s[n : n + count])
        service_s += alone_s
        work_s[n + count :] = 0.0
        sums = np.add.accumulate(work_s.reshape(-1, n))
        queued_s = sums.reshape(-1)
        queued_s[:count] -= since_s
        queued_s[count:] -= self._tick_s
        lowest = np.minimum.accumulate(sums)
        sums -= np.minimum(lowest, 0.0, out=lowest)
        turn = count % n
        left = sums[-1]
        self._left_s = np.concatenate((left[turn:], left[:turn])) if turn else left
        self._left_total_s = float(np.add.reduce(left))
        return queued_s[:count], service_s

    def _tick(self, now_s: float, ttft: Floats, prompt_tokens: float) -> None:
        tick_s = self._tick_s
        self._billed_s.append((self._ready + len(self._pending)) * tick_s)
        while self._pending and self._pending[0] <= now_s:
            self._pending.pop(0)
            self._ready += 1
        signals = Signals(
            measured_at_s=now_s,
            replicas_ready=self._ready,
            replicas_pending=len(self._pending),
            requests_per_second=len(ttft) / tick_s,
            ttft_p95_ms=self._p95_ms(ttft) if self._wants_quantile else None,
            slow_share=float(np.count_nonzero(ttft > self._slo_s)) / max(len(ttft), 1),
            utilization=min(self._mean_level / max(self._ready, 1), 1.0),
            in_flight=self._mean_level,
            waiting=self._mean_waiting,
            prefill_tokens_per_s=prompt_tokens / tick_s,
            output_tokens_per_s=self._output / tick_s,
            error_rate=0.0,
            ttft_idle_ms=self._ttft_idle_ms,
        )
        decision, self._state = decide(self._policy, self._state, signals, now_s)
        if decision.direction is not Direction.HOLD:
            before = self._ready + len(self._pending)
            self._steps.append(Step(at_s=now_s, decision=decision, replicas_before=before))
            self._scale_to(decision.replicas, now_s)

    def _p95_ms(self, ttft: Floats) -> float:
        self._recent.append(ttft)
        values = np.concatenate(self._recent)
        if not len(values):
            return 0.0
        rank = min(math.ceil(0.95 * len(values)) - 1, len(values) - 1)
        return float(np.partition(values, rank)[rank]) * 1000.0

    def _scale_to(self, replicas: int, now_s: float) -> None:
        change = replicas - self._ready - len(self._pending)
        for _ in range(change):
            self._pending.append(now_s + self._cold_start_s)
        for _ in range(-change):
            if self._pending:
                self._pending.pop()
                continue
            self._ready -= 1
            self._billed_s[-1] += self._reply_tokens * self._turn_s
        self._most = max(self._most, replicas)
