"""A region in virtual time: replicas, router, scaler, one seed; the production `decide` decides.

Exact at the level of requests: three events a request (arrival, prefill done, reply done), no
event per token (see `replica.py`). Routing goes to the ready replica with a free slot and the
least prompt work, unless the caller passes another `pick`.

Replica-hours count every replica that exists at the end of a tick: cold starts and drains are paid
for.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from bul.scaling.decide import Policy, decide
from bul.scaling.decision import Decision, Direction
from bul.simulator.arrivals import Arrivals, Floats
from bul.simulator.replica import Job, ReplicaModel, ReplicaProfile
from bul.simulator.window import SignalWindow

__all__ = ["Region", "RegionReport", "Step"]

State = TypeVar("State")
Pick = Callable[[Sequence[ReplicaModel], int], int]


def _least_work(replicas: Sequence[ReplicaModel], turn: int) -> int:
    """Index of a replica with a free slot if there is one, then the least prompt work queued.

    What the router's cost comes to when no prompt shares a prefix; a slot is waited for in
    seconds, a prompt in tenths. Then the fewest requests; ties go round with `turn`.
    """
    count = len(replicas)
    best, best_load = 0, (True, math.inf, 0)
    for step in range(count):
        index = (turn + step) % count
        model = replicas[index]
        in_flight = model.in_flight
        load = (in_flight >= model.profile.slots, model.prefill_backlog, in_flight)
        if load < best_load:
            best, best_load = index, load
    return best


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One decision that changed something, for history and plots."""

    at_s: float
    decision: Decision
    replicas_before: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RegionReport:
    """What a run showed. arrived_s and ttft_s are parallel; unfinished requests have ttft inf.

    replica_seconds: billed in each tick of `tick_s`, starts and drains included.
    """

    arrived_s: Floats
    ttft_s: Floats
    tick_s: float
    replica_seconds: Floats
    steps: tuple[Step, ...]
    replicas_max: int

    def violation_share(self, slo_ttft_s: float) -> float:
        """Share of requests whose first token came later than the SLO."""
        return float(np.mean(self.ttft_s > slo_ttft_s)) if len(self.ttft_s) else 0.0

    @property
    def replica_hours(self) -> float:
        return float(self.replica_seconds.sum()) / 3600.0

    def part(self, start_s: float, end_s: float) -> RegionReport:
        """The same run, seen from `start_s` up to `end_s` only."""
        keep = (self.arrived_s >= start_s) & (self.arrived_s < end_s)
        first, last = int(start_s // self.tick_s), int(end_s // self.tick_s)
        return dataclasses.replace(
            self,
            arrived_s=self.arrived_s[keep],
            ttft_s=self.ttft_s[keep],
            replica_seconds=self.replica_seconds[first:last],
            steps=tuple(step for step in self.steps if start_s <= step.at_s < end_s),
        )

    def count(self, direction: Direction) -> int:
        return sum(step.decision.direction is direction for step in self.steps)

    def reversals(self, within_s: float = 600.0) -> int:
        """Changes of direction less than `within_s` after the one before."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return sum(
            a.decision.direction is not b.decision.direction and b.at_s - a.at_s < within_s
            for a, b in pairs
        )


@dataclasses.dataclass(slots=True, eq=False)
class _Member:
    model: ReplicaModel
    ready_s: float
    draining: bool = False
    version: int = 0
    busy_seen_s: float = 0.0
    in_flight_since_s: float = 0.0
    job_seconds: float = 0.0
    wait_seconds: float = 0.0


class Region(Generic[State]):
    """One run: feed it arrivals once, read the report."""

    def __init__(  # every argument is a term of the experiment
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
        pick: Pick = _least_work,
    ) -> None:
        self._profile = profile
        self._policy = policy
        self._state = state
        self._cold_start_s = cold_start_s
        self._tick_s = tick_s
        self._ttft_idle_ms = ttft_idle_ms
        self._pick = pick
        self._window = SignalWindow(slo_ttft_s)
        self._members: list[_Member] = []
        self._ready: list[_Member] = []
        self._models: list[ReplicaModel] = []
        self._events: list[tuple[float, int, _Member, int]] = []
        self._serial = 0
        self._turn = 0
        self._billed_s: list[float] = []
        self._steps: list[Step] = []
        self._jobs: list[Job] = []
        self._most = replicas
        for _ in range(replicas):
            self._start(0.0, ready_s=0.0)
        self._refresh_ready(0.0)

    def run(self, arrivals: Arrivals) -> RegionReport:
        """Play all arrivals, then let what is in flight finish."""
        next_tick_s = self._tick_s
        times = arrivals.at_s.tolist()
        prompts, outputs = arrivals.prompt_tokens.tolist(), arrivals.output_tokens.tolist()
        for at_s, prompt, output in zip(times, prompts, outputs, strict=True):
            while next_tick_s <= at_s:
                self._events_until(next_tick_s)
                self._tick(next_tick_s)
                next_tick_s += self._tick_s
            self._events_until(at_s)
            self._arrive(Job(at_s, prompt, output), at_s)
        self._events_until(math.inf)
        return self._report()

    def _report(self) -> RegionReport:
        arrived = np.array([job.arrived_s for job in self._jobs])
        first = np.array([job.first_token_s for job in self._jobs])
        ttft = np.where(np.isnan(first), np.inf, first - arrived)
        return RegionReport(
            arrived_s=arrived,
            ttft_s=ttft,
            tick_s=self._tick_s,
            replica_seconds=np.array(self._billed_s),
            steps=tuple(self._steps),
            replicas_max=self._most,
        )

    def _arrive(self, job: Job, now_s: float) -> None:
        self._turn += 1
        member = self._ready[self._pick(self._models, self._turn)]
        self._advance(member, now_s)
        member.model.submit(job)
        self._jobs.append(job)
        self._window.arrived(job.prefill_tokens)
        self._schedule(member)

    def _advance(self, member: _Member, now_s: float) -> None:
        model = member.model
        elapsed_s = now_s - member.in_flight_since_s
        member.job_seconds += model.in_flight * elapsed_s
        member.wait_seconds += len(model.waiting) * elapsed_s
        member.in_flight_since_s = now_s
        model.advance(now_s)

    def _schedule(self, member: _Member) -> None:
        member.version += 1
        at_s = member.model.next_event_s()
        if at_s < math.inf:
            self._serial += 1
            heapq.heappush(self._events, (at_s, self._serial, member, member.version))

    def _events_until(self, until_s: float) -> None:
        events = self._events
        while events and events[0][0] <= until_s:
            at_s, _, member, version = heapq.heappop(events)
            if version != member.version:
                continue
            self._advance(member, at_s)
            for job in member.model.finish_due():
                self._window.done(job.output_tokens)
            for job in member.model.take_first_tokens():
                delay_s = job.started_s - job.arrived_s
                self._window.first_token(job.first_token_s - job.arrived_s, delay_s)
            if member.draining and not member.model.in_flight:
                self._members.remove(member)
            else:
                self._schedule(member)

    def _tick(self, now_s: float) -> None:
        self._refresh_ready(now_s)
        self._billed_s.append(len(self._members) * self._tick_s)
        for member in self._members:
            self._advance(member, now_s)
            busy_s = member.model.busy_s - member.busy_seen_s
            member.busy_seen_s = member.model.busy_s
            self._window.occupied(busy_s, member.job_seconds, member.wait_seconds)
            member.job_seconds = member.wait_seconds = 0.0
            self._schedule(member)
        ready = len(self._ready)
        pending = sum(1 for m in self._members if not m.draining) - ready
        signals = self._window.close(now_s, self._tick_s, ready, pending, self._ttft_idle_ms)
        decision, self._state = decide(self._policy, self._state, signals, now_s)
        if decision.direction is not Direction.HOLD:
            self._steps.append(Step(at_s=now_s, decision=decision, replicas_before=ready + pending))
            self._scale_to(decision.replicas, now_s)

    def _scale_to(self, replicas: int, now_s: float) -> None:
        alive = [member for member in self._members if not member.draining]
        for _ in range(replicas - len(alive)):
            self._start(now_s, ready_s=now_s + self._cold_start_s)
        # Newest first: those that are still starting go before those that serve.
        for member in sorted(alive, key=lambda m: -m.ready_s)[: max(len(alive) - replicas, 0)]:
            member.draining = True
            if not member.model.in_flight:
                self._members.remove(member)
        self._refresh_ready(now_s)
        self._most = max(self._most, replicas)

    def _start(self, now_s: float, ready_s: float) -> None:
        member = _Member(model=ReplicaModel(self._profile, now_s), ready_s=ready_s)
        member.in_flight_since_s = now_s
        self._members.append(member)

    def _refresh_ready(self, now_s: float) -> None:
        self._ready = [m for m in self._members if not m.draining and m.ready_s <= now_s]
        self._models = [member.model for member in self._ready]
