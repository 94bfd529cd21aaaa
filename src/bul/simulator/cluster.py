"""A region in virtual time: replicas with their caches, router, scaler, one seed.

What decides is production code: `decide`, the router's `route.py` with its residency and rates
(`routing.py`), and the eviction policies (`prefixes.py`). Exact at the level of requests: three
events a request (arrival, prefill done, reply done), no event per token (see `replica.py`).

Replica-hours count every replica that exists at the end of a tick: cold starts and drains are paid
for.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from typing import Generic, TypeVar

import numpy as np

from bul.cache.eviction.make import make_policy
from bul.router.residency import Residency
from bul.scaling.decide import Policy, decide
from bul.scaling.decision import Direction
from bul.simulator.arrivals import Arrivals
from bul.simulator.job import Job
from bul.simulator.prefixes import PrefixCache
from bul.simulator.replica import ReplicaModel, ReplicaProfile
from bul.simulator.report import RegionReport, Step
from bul.simulator.routing import Router, Routing
from bul.simulator.window import SignalWindow

__all__ = ["Region"]

State = TypeVar("State")


@dataclasses.dataclass(slots=True, eq=False)
class _Member:
    model: ReplicaModel
    residency: Residency
    ready_s: float
    draining: bool = False
    version: int = 0
    index: int = 0
    busy_seen_s: float = 0.0
    in_flight_since_s: float = 0.0
    in_flight_s: float = 0.0
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
        routing: Routing | None = None,
    ) -> None:
        self._profile = profile
        self._policy = policy
        self._state = state
        self._cold_start_s = cold_start_s
        self._tick_s = tick_s
        self._ttft_idle_ms = ttft_idle_ms
        self._routing = routing or Routing()
        self._router = Router(self._routing)
        self._window = SignalWindow(slo_ttft_s)
        self._members: list[_Member] = []
        self._ready: list[_Member] = []
        self._residencies: list[Residency] = []
        self._loads: list[int] = []
        self._events: list[tuple[float, int, _Member, int]] = []
        self._serial = 0
        self._gone_s: list[float] = []
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
        for job in arrivals.jobs():
            while next_tick_s <= job.arrived_s:
                self._events_until(next_tick_s)
                self._tick(next_tick_s)
                next_tick_s += self._tick_s
            self._events_until(job.arrived_s)
            self._arrive(job, job.arrived_s)
        self._events_until(math.inf)
        for member in self._members:
            member.in_flight_s += member.job_seconds
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
            prompt_tokens=sum(job.prompt_tokens for job in self._jobs),
            cached_tokens=sum(job.cached_tokens for job in self._jobs),
            in_flight_s=(*self._gone_s, *(member.in_flight_s for member in self._members)),
        )

    def _arrive(self, job: Job, now_s: float) -> None:
        index = self._router.pick(self._residencies, self._loads, job)
        member = self._ready[index]
        self._loads[index] += 1
        self._advance(member, now_s)
        member.model.submit(job)
        self._jobs.append(job)
        self._window.arrived(job.prompt_tokens)
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
                if not member.draining:
                    self._loads[member.index] -= 1
            for job in member.model.take_first_tokens():
                self._router.first_token(job)
                self._window.first_token(job)
            if member.draining and not member.model.in_flight:
                self._remove(member)
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
            member.in_flight_s += member.job_seconds
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
                self._remove(member)
        self._refresh_ready(now_s)
        self._most = max(self._most, replicas)

    def _start(self, now_s: float, ready_s: float) -> None:
        routing, cache, policy = self._routing, None, None
        if routing.capacity_blocks:
            policy = make_policy(routing.eviction, routing.capacity_blocks, routing.seed)
            cache = PrefixCache(policy, routing.block_tokens)
        model = ReplicaModel(self._profile, now_s, cache)
        member = _Member(model=model, residency=self._router.residency(policy), ready_s=ready_s)
        member.in_flight_since_s = now_s
        self._members.append(member)

    def _remove(self, member: _Member) -> None:
        self._members.remove(member)
        self._gone_s.append(member.in_flight_s + member.job_seconds)

    def _refresh_ready(self, now_s: float) -> None:
        self._ready = [m for m in self._members if not m.draining and m.ready_s <= now_s]
        self._residencies = [member.residency for member in self._ready]
        self._loads = [member.model.in_flight for member in self._ready]
        for index, member in enumerate(self._ready):
            member.index = index
