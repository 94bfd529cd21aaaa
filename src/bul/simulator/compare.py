"""Policies against one another on the same arrivals: tuned on a first part, scored on the rest.

Refuses an unfair race: each policy gets the same number of settings, its default among them; the
one chosen is frozen before the second part is looked at; all seeds and all settings are reported.
`fixed` gets every size, which favours it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from bul.errors import ConfigError
from bul.scaling.adaptive import Capacity
from bul.scaling.bounds import Bounds
from bul.scaling.decide import Policy
from bul.scaling.decision import Direction
from bul.scaling.registry import knob_of, make_policy, make_state
from bul.scaling.rules import RuleState
from bul.simulator.arrivals import Arrivals, Ints
from bul.simulator.cluster import Region
from bul.simulator.coarse import CoarseRegion
from bul.simulator.oracle import Future, Oracle
from bul.simulator.replica import ReplicaProfile
from bul.simulator.report import RegionReport
from bul.simulator.routing import Routing

__all__ = [
    "COMPARED",
    "Experiment",
    "Score",
    "capacity_of",
    "hours_at",
    "play",
    "routing_of",
    "score",
    "settings_of",
    "start_replicas",
]

COMPARED = ("adaptive", "hpa", "kpa", "ray", "keda", "guide", "fixed", "oracle")
_SETTINGS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "hpa": (3.5, 4.5, 5.5, 6.75, 8.0, 10.0),
        "kpa": (1.0, 2.0, 3.0, 5.0, 8.0, 12.0),
        "ray": (2.0, 3.0, 4.0, 5.0, 6.5, 8.0),
        "keda": (0.1, 0.25, 0.5, 1.0, 2.0, 5.0),
        "guide": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "oracle": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    }
)
_ASKED = (0.5, 0.8, 1.0, 2.0, 3.0, 6.0)
"""`adaptive` is asked to hold these multiples of the share that the experiment asks for. None lies
closely above 1: while it learns it may hold less than it is asked, and would be chosen for that."""
EVICTION = "adaptive"
"""The cache's default."""
FIVE_MINUTES_S = 300.0
LONG_S = 86_400.0
BUCKET_REQUESTS_MIN = 20
"""A five-minute stretch with fewer requests says nothing about a share."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """What all policies share. Seconds, and shares in (0, 1). Raises ConfigError."""

    profile: ReplicaProfile
    bounds: Bounds
    cold_start_s: float = 120.0
    slo_ttft_s: float = 0.5
    violation_max: float = 0.01
    tune_first: float = 0.5
    tick_s: float = 15.0
    coarse: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.tune_first < 1.0:
            raise ConfigError(f"tune_first must be in (0, 1), was {self.tune_first}")
        if not 0.0 < self.violation_max < 0.2:
            raise ConfigError(f"violation_max must be in (0, 0.2), was {self.violation_max}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One run of one setting with one seed; the first part tunes, the rest counts.

    first_violation_bound: what the choice looks at. Of a first part of a day or more, its share; of
    a shorter one, the share and twice its standard error (from five-minute stretches): half an hour
    with one burst in it says little, and a loose setting would pass for a good one.
    """

    first_violation_share: float
    first_violation_bound: float
    first_replica_hours: float
    violation_share: float
    worst_5min_share: float
    replica_hours: float
    ups: int
    downs: int
    reversals: int


def settings_of(name: str, experiment: Experiment) -> tuple[float, ...]:
    """The settings tried for a policy, ascending."""
    if name == "adaptive":
        return tuple(round(experiment.violation_max * factor, 6) for factor in _ASKED)
    if name == "fixed":
        bounds = experiment.bounds
        return tuple(float(n) for n in range(bounds.min_replicas, bounds.max_replicas + 1))
    return _SETTINGS[name]


def capacity_of(profile: ReplicaProfile, context_tokens: float) -> Capacity:
    """What `bul bench` would have measured on this profile, with sequences of so many tokens."""
    return Capacity(
        prefill_tokens_per_s=profile.prefill_tokens_per_s,
        output_tokens_per_s=profile.output_tokens_per_s(context_tokens),
        slots=profile.slots,
    )


def start_replicas(experiment: Experiment, future: Future) -> int:
    """The same first fleet for everyone: half as much again as the first ten minutes' work."""
    first = future.mean[: math.ceil(600.0 / future.tick_s)]
    wanted = math.ceil(1.5 * float(first.mean()))
    return min(max(wanted, experiment.bounds.min_replicas), experiment.bounds.max_replicas)


def _policy(
    name: str, setting: float, experiment: Experiment, future: Future
) -> tuple[Policy[Any], object]:
    bounds, cold_start_s = experiment.bounds, experiment.cold_start_s
    if name == "oracle":
        oracle = Oracle(future=future, bounds=bounds, margin=setting, cold_start_s=cold_start_s)
        return oracle, RuleState()
    settings: dict[str, Any] = {knob_of(name): int(setting) if name == "fixed" else setting}
    if name == "adaptive":
        settings |= {
            "target_ms": experiment.slo_ttft_s * 1000.0,
            "capacity": capacity_of(experiment.profile, future.context_tokens),
            "cold_start_s": cold_start_s,
        }
    if name == "guide":
        settings["target_latency_p95"] = experiment.slo_ttft_s * 1000.0
    return make_policy(name, bounds=bounds, **settings), make_state(name)


def play(
    name: str,
    setting: float,
    arrivals: Arrivals,
    experiment: Experiment,
    future: Future,
    *,
    coarse: bool | None = None,
) -> RegionReport:
    """One run. coarse: None takes the experiment's."""
    policy, state = _policy(name, setting, experiment, future)
    profile, prompts = experiment.profile, future.computed.prompt_tokens
    idle_s = profile.idle_ttft_s(float(np.quantile(prompts, 0.95)) if len(prompts) else 0.0)
    terms: dict[str, Any] = {
        "replicas": int(setting) if name == "fixed" else start_replicas(experiment, future),
        "cold_start_s": experiment.cold_start_s,
        "tick_s": experiment.tick_s,
        "slo_ttft_s": experiment.slo_ttft_s,
        "ttft_idle_ms": idle_s * 1000.0,
    }
    if experiment.coarse if coarse is None else coarse:
        return CoarseRegion(profile, policy, state, **terms).run(future.computed)
    routing = routing_of(arrivals, profile)
    return Region(profile, policy, state, routing=routing, **terms).run(arrivals)


def routing_of(arrivals: Arrivals, profile: ReplicaProfile) -> Routing:
    """The router's default over replicas that keep what the profile says, if there are blocks.

    Without blocks `prefix` comes to `least_conn`, which is cheaper to ask.
    """
    if not arrivals.paths:
        return Routing(policy="least_conn")
    return Routing(
        policy="prefix",
        eviction=EVICTION,
        capacity_blocks=profile.cache_tokens // arrivals.block_tokens,
        block_tokens=arrivals.block_tokens,
        residency_tokens=profile.cache_tokens,
    )


def score(report: RegionReport, split_s: float, end_s: float, slo_ttft_s: float) -> Score:
    """A run seen as [0, split_s) to tune on and [split_s, end_s) to count."""
    first, rest = report.part(0.0, split_s), report.part(split_s, end_s)
    return Score(
        first_violation_share=first.violation_share(slo_ttft_s),
        first_violation_bound=_bound(first, split_s, slo_ttft_s),
        first_replica_hours=first.replica_hours,
        violation_share=rest.violation_share(slo_ttft_s),
        worst_5min_share=_worst(rest, slo_ttft_s),
        replica_hours=rest.replica_hours,
        ups=rest.count(Direction.UP),
        downs=rest.count(Direction.DOWN),
        reversals=rest.reversals(),
    )


def _bound(report: RegionReport, lasted_s: float, slo_ttft_s: float) -> float:
    share = report.violation_share(slo_ttft_s)
    if lasted_s >= LONG_S or not len(report.arrived_s):
        return share
    counts, slow = _by_five_minutes(report, slo_ttft_s)
    squares = float(((slow - share * counts) ** 2).sum())
    return share + 2.0 * math.sqrt(squares) / float(counts.sum())


def _by_five_minutes(report: RegionReport, slo_ttft_s: float) -> tuple[Ints, Ints]:
    """Requests, and slow ones, of each five minutes from the first request's on."""
    first, last = (int(report.arrived_s[k] // FIVE_MINUTES_S) for k in (0, -1))
    edges = np.searchsorted(report.arrived_s, np.arange(first, last + 2) * FIVE_MINUTES_S)
    slow = np.concatenate(([0], np.cumsum(report.ttft_s > slo_ttft_s)))[edges]
    return np.diff(edges), np.diff(slow)


def _worst(report: RegionReport, slo_ttft_s: float) -> float:
    if not len(report.arrived_s):
        return 0.0
    counts, slow = _by_five_minutes(report, slo_ttft_s)
    told = counts >= min(BUCKET_REQUESTS_MIN, int(counts.max()))
    return float((slow[told] / counts[told]).max())


def hours_at(points: Sequence[tuple[float, float]], share: float) -> float | None:
    """Replica-hours at a violation share, between neighbouring settings; None outside.

    points: (violation share, replica-hours) in order of the setting. Straight in the logarithm
    of the share; where the curve crosses `share` more than once, the fewest hours count.
    """
    found = []
    for (share_a, hours_a), (share_b, hours_b) in itertools.pairwise(points):
        low, high = sorted((max(share_a, 1e-9), max(share_b, 1e-9)))
        if not low <= share <= high:
            continue
        span = math.log(share_b or 1e-9) - math.log(share_a or 1e-9)
        part = (math.log(share) - math.log(share_a or 1e-9)) / span if span else 0.0
        found.append(hours_a + part * (hours_b - hours_a))
    return min(found) if found else None
