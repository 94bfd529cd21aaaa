"""The guide's four phases and three scenarios, as data: limits, cache settings, fleets, shapes.

Refuses to judge: whether a phase's advice fits a workload is said by `plan.py`, from tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from bul.errors import ConfigError

__all__ = ["PHASES", "SCENARIOS", "Phase", "Scenario", "phase_for", "scenario_named"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One load level of the guide. [rps_min, rps_max) requests/s; cache: `KVCacheConfig` fields.

    replicas_min, replicas_max: what the guide provides for it; 0 for no upper end.
    regions: more than one from phase 4 on.
    """

    number: int
    title: str
    rps_min: float
    rps_max: float
    replicas_min: int
    replicas_max: int
    regions: int
    cache: Mapping[str, object]


def _cache(**fields: object) -> Mapping[str, object]:
    return MappingProxyType(fields)


PHASES = (
    Phase(
        number=1,
        title="one user",
        rps_min=0.0,
        rps_max=100.0,
        replicas_min=1,
        replicas_max=1,
        regions=1,
        cache=_cache(max_tokens=4096, enable_prefetch=True, prefetch_size=8),
    ),
    Phase(
        number=2,
        title="a small team",
        rps_min=100.0,
        rps_max=500.0,
        replicas_min=2,
        replicas_max=3,
        regions=1,
        cache=_cache(
            max_tokens=8192, enable_prefetch=True, prefetch_size=16, enable_persistence=True
        ),
    ),
    Phase(
        number=3,
        title="a company",
        rps_min=500.0,
        rps_max=2000.0,
        replicas_min=5,
        replicas_max=10,
        regions=1,
        cache=_cache(
            max_tokens=16_384, enable_distributed=True, enable_prefetch=True, prefetch_size=32
        ),
    ),
    Phase(
        number=4,
        title="several regions",
        rps_min=2000.0,
        rps_max=float("inf"),
        replicas_min=10,
        replicas_max=0,
        regions=2,
        cache=_cache(
            max_tokens=16_384,
            enable_distributed=True,
            distributed_backend="nccl",
            enable_prefetch=True,
            prefetch_size=32,
        ),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A traffic shape of the guide, as a day of rates relative to the one that was asked for.

    low, peak: times the asked rate. peak_share: of the time at `peak`, `low` otherwise; the guide
    names no numbers, so these are assumed and said to be. cache: fields stronger than the phase's.
    fixed: the guide wants no autoscaling here. fleet_min, fleet_max: the guide's limits.
    """

    name: str
    low: float
    peak: float
    peak_share: float
    peaks_per_day: int
    fixed: bool
    fleet_min: int
    fleet_max: int
    cache: Mapping[str, object]


SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "traffic-spikes": Scenario(
            name="traffic-spikes",
            low=1.0,
            peak=3.0,
            peak_share=1 / 12,
            peaks_per_day=12,
            fixed=False,
            fleet_min=3,
            fleet_max=20,
            cache=_cache(
                max_tokens=16_384, enable_prefetch=True, prefetch_size=32, enable_persistence=True
            ),
        ),
        "constant-high": Scenario(
            name="constant-high",
            low=1.0,
            peak=1.0,
            peak_share=1.0,
            peaks_per_day=0,
            fixed=True,
            fleet_min=10,
            fleet_max=10,
            cache=_cache(max_tokens=16_384, enable_distributed=True, enable_prefetch=True),
        ),
        "variable": Scenario(
            name="variable",
            low=0.4,
            peak=1.0,
            peak_share=0.5,
            peaks_per_day=1,
            fixed=False,
            fleet_min=2,
            fleet_max=15,
            cache=_cache(),
        ),
    }
)


def phase_for(requests_per_second: float) -> Phase:
    """By the guide's limits, which look at requests alone."""
    return next(phase for phase in PHASES if requests_per_second < phase.rps_max)


def scenario_named(name: str) -> Scenario:
    """Raises ConfigError for one that the guide does not have."""
    if name not in SCENARIOS:
        raise ConfigError(f"unknown scenario: {name}", hint=f"known: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
