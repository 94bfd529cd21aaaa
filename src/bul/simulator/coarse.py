"""The same region, coarser and 20 to 40 times faster: fluid between ticks, exact arrivals.

For long traces. Decisions come from the production `decide`, on the same signals. What is
simplified, and why it is near the truth:

- The prompts of all replicas form one queue served at n times one replica's speed (Lindley's
  recursion, vectorised: wait_i = c_i - min(0, min_{j<=i} c_j) with c the running sum of
  service minus gap). The router sends a prompt to the least prompt work, so the split queue
  behaves nearly like the pooled one.
- Running replies are a fluid R with R' = arrivals - mu * min(R, slots * n), in steps of a second;
  what exceeds the slots waits for one.
- A replica that drains is billed for one mean reply.

`make bench-scaling` prints its error against the exact simulation of `cluster.py`.
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
from bul.simulator.arrivals import Arrivals, Floats
from bul.simulator.replica import ReplicaProfile
from bul.simulator.report import RegionReport, Step

__all__ = ["CoarseRegion"]

State = TypeVar("State")
QUANTILE_TICKS = 4
POOLING = 0.5
CROWDING = 1.0
"""Replies end at random, not evenly: slots run out this many square roots early (fitted)."""
_NONE = np.empty(0)


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """Arrivals as the replay needs them. totals: prompt tokens, seconds alone, output tokens."""

    alone_s: Floats
    turns: Floats
    edges: list[int]
    totals: list[list[float]]


@functools.lru_cache(maxsize=1)
def _work(arrivals: Arrivals, profile: ReplicaProfile, tick_s: float) -> _Work:
    """The same for every policy, so the last one is kept: a quarter of a run's time."""
    at_s, tokens = arrivals.at_s, arrivals.prompt_tokens.astype(np.float64)
    alone_s = tokens / profile.prefill_tokens_per_s
    turns = np.maximum(tokens / profile.chunk_tokens, 1.0)
    ticks = math.ceil(float(at_s[-1]) / tick_s) if len(at_s) else 0
    edges = np.searchsorted(at_s, np.arange(ticks + 1) * tick_s)
    edges[-1] = len(at_s)
    outputs = arrivals.output_tokens.astype(np.float64)
    sums = (
        np.concatenate(([0.0], np.cumsum(x)))[edges].tolist() for x in (tokens, alone_s, outputs)
    )
    return _Work(alone_s, turns, edges.tolist(), list(sums))


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
        self._running = 0.0
        self._mean_running = self._mean_waiting = 0.0
        self._bins = math.ceil(tick_s)
        self._left_s = 0.0  # prompt work still queued at the end of the last tick, pooled seconds
        self._reply_tokens = 1.0
        self._billed_s: list[float] = []
        self._steps: list[Step] = []
        self._most = replicas
        self._recent: deque[Floats] = deque(maxlen=QUANTILE_TICKS)
        self._wants_quantile = "ttft_p95_ms" in policy.needs

    def run(self, arrivals: Arrivals) -> RegionReport:
        """Play all arrivals in ticks."""
        work = _work(arrivals, self._profile, self._tick_s)
        at_s, alone_s, turns = arrivals.at_s, work.alone_s, work.turns
        edges, totals = work.edges, work.totals
        ticks = len(edges) - 1
        ttft = np.empty(len(at_s))
        for k in range(ticks):
            i, j = edges[k], edges[k + 1]
            start_s = k * self._tick_s
            prompt, alone, output = (t[k + 1] - t[k] for t in totals)
            part = self._play(start_s, at_s[i:j], alone_s[i:j], turns[i:j], alone, output)
            ttft[i:j] = part
            self._tick(start_s + self._tick_s, part, prompt)
        return RegionReport(
            arrived_s=at_s,
            ttft_s=ttft,
            tick_s=self._tick_s,
            replica_seconds=np.array(self._billed_s),
            steps=tuple(self._steps),
            replicas_max=self._most,
        )

    def _play(
        self,
        start_s: float,
        at_s: Floats,
        alone_s: Floats,
        turns: Floats,
        alone_total_s: float,
        output: float,
    ) -> Floats:
        """Arrivals of one tick against the present replicas; returns their TTFT in seconds."""
        profile, n, tick_s = self._profile, self._ready, self._tick_s
        count, slots = len(at_s), n * profile.slots
        if count:
            self._reply_tokens = output / count
        before = self._running
        held_s = (alone_total_s + float(turns.sum()) * profile.decode_base_s) / max(count, 1)
        prefilling = min(alone_total_s / (tick_s * n), 0.95)
        for _ in range(2):  # the second time with what the first found to be running meanwhile
            running = (min(before, slots) + min(self._running, slots)) / 2.0
            turn_s = profile.decode_base_s + profile.decode_each_s * running / n
            # A slot is held through the prefill too.
            done_per_s = 1.0 / (self._reply_tokens * turn_s / (1.0 - prefilling) + held_s)
            arrived = np.bincount((at_s - start_s).astype(np.int64), minlength=self._bins).tolist()
            levels = self._levels(before, arrived, done_per_s, slots)
        if not count:
            self._left_s = max(self._left_s - tick_s, 0.0)
            return _NONE
        service_s = alone_s + turns * turn_s
        since_s = at_s - start_s
        steps = np.empty(count)
        steps[0] = self._left_s - since_s[0]
        np.subtract(service_s[:-1] / n, since_s[1:] - since_s[:-1], out=steps[1:])
        sums = np.cumsum(steps)
        wait_s = sums - np.minimum(np.minimum.accumulate(sums), 0.0)
        self._left_s = max(wait_s[-1] + service_s[-1] / n - (tick_s - since_s[-1]), 0.0)
        # A pooled server makes a second prompt wait where n replicas would start it at once.
        spare_s = POOLING * (n - 1) / n * float(service_s.mean())
        ttft = np.maximum(wait_s - spare_s, 0.0) + service_s
        free = slots - CROWDING * math.sqrt(slots)
        if max(levels) > free:
            over = np.maximum(np.array(levels) - free, 0.0) / (slots * done_per_s)
            ttft += over[(at_s - start_s).astype(np.int64)]
        return ttft

    def _levels(
        self, before: float, arrived: list[int], done_per_s: float, slots: int
    ) -> list[float]:
        """Requests that hold or want a slot in each second of the tick; keeps the last and means.

        The means are what a region's own metrics show: in flight over the window, not at its end.
        """
        stay, leave = math.exp(-done_per_s), done_per_s * slots
        level, levels = before, []
        for count in arrived:
            levels.append(level + count / 2.0)
            level += count
            level = level * stay if level <= slots else max(level - leave, slots * stay)
        self._running = level
        self._mean_running = sum(levels) / len(levels)
        self._mean_waiting = sum(x - slots for x in levels if x > slots) / len(levels)
        return levels

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
            queue_delay_ms=self._left_s * 1000.0,
            utilization=min(self._mean_running / max(self._ready, 1), 1.0),
            in_flight=self._mean_running + self._left_s * len(ttft) / tick_s,
            waiting=self._mean_waiting + self._left_s * len(ttft) / tick_s,
            prefill_tokens_per_s=prompt_tokens / tick_s,
            output_tokens_per_s=len(ttft) * self._reply_tokens / tick_s,
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
            turn_s = self._profile.decode_base_s + self._profile.decode_each_s * (
                self._running / max(self._ready, 1)
            )
            self._billed_s[-1] += self._reply_tokens * turn_s
        self._most = max(self._most, replicas)
