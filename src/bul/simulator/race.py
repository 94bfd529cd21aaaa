"""Runs a comparison: every policy, setting and seed on the same arrivals, one after the other.

Refuses workloads that would not fit into memory, before it draws them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from bul.errors import ConfigError
from bul.simulator.arrivals import Arrivals, RateWindows, draw_all, thin
from bul.simulator.compare import COMPARED, Experiment, Score, play, score, settings_of
from bul.simulator.oracle import future_of
from bul.simulator.table import choose

__all__ = ["CoarseError", "Outcome", "arrivals_of", "coarse_errors", "race"]

REQUESTS_MAX = 40_000_000
SAMPLE_REQUESTS = 100_000
DAY_S = 86_400.0
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CoarseError:
    """The coarse replay against the exact one, on the same stretch: (coarse, exact)."""

    policy: str
    setting: float
    requests: int
    violation_share: tuple[float, float]
    replica_hours: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """All scores: policy -> setting -> one per seed."""

    scores: Mapping[str, Mapping[float, Sequence[Score]]]
    requests: int
    duration_s: float
    coarse_errors: Sequence[CoarseError]


def arrivals_of(
    workload: RateWindows | Arrivals, scale: float, seed: int, days: float | None
) -> Arrivals:
    """The first `days` of a workload at `scale` times its rate. Raises ConfigError."""
    end_s = float("inf") if days is None else days * DAY_S
    if isinstance(workload, RateWindows):
        windows = workload.between(0.0, end_s)
        expected = float(windows.requests_per_second.sum()) * windows.window_s * scale
        if expected > REQUESTS_MAX:
            raise ConfigError(
                f"{expected:,.0f} requests are too many to hold, at most {REQUESTS_MAX:,}",
                hint=f"--scale {scale * REQUESTS_MAX / expected / 2:.2g} fits",
            )
        arrivals = draw_all(windows, scale, seed)
    else:
        if scale > 1.0:
            raise ConfigError(f"scale must be at most 1 for a trace of requests, was {scale}")
        arrivals = thin(workload.between(0.0, end_s), scale, seed)
    if len(arrivals) < 2:
        raise ConfigError("no requests are left to simulate", hint="a larger --scale or --days")
    return arrivals


def race(
    workload: RateWindows | Arrivals,
    experiment: Experiment,
    names: Sequence[str],
    *,
    seeds: Sequence[int],
    scale: float,
    days: float | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Play `names` with all their settings and all `seeds`. Raises ConfigError."""
    for name in names:
        if name not in COMPARED:
            raise ConfigError(f"unknown policy: {name}", hint=f"known: {', '.join(COMPARED)}")
    plan = [(name, setting) for name in names for setting in settings_of(name, experiment)]
    scores: dict[str, dict[float, list[Score]]] = {name: {} for name in names}
    total, done, requests, duration_s = len(plan) * len(seeds), 0, 0, 0.0
    errors: list[CoarseError] = []
    for seed in seeds:
        arrivals = arrivals_of(workload, scale, seed, days)
        requests += len(arrivals)
        duration_s = _end_s(arrivals, experiment)
        future = future_of(arrivals, experiment.profile, experiment.tick_s)
        for name, setting in plan:
            if progress is not None:
                progress(f"{name} {setting:g}, seed {seed}", done, total)
            report = play(name, setting, arrivals, experiment, future)
            split_s = _split_s(duration_s, experiment)
            found = score(report, split_s, duration_s, experiment.slo_ttft_s)
            scores[name].setdefault(setting, []).append(found)
            done += 1
        if experiment.coarse and not errors:
            later = arrivals.between(_split_s(duration_s, experiment), duration_s)
            errors = coarse_errors(scores, later, experiment)
    return Outcome(
        scores=scores, requests=requests, duration_s=duration_s, coarse_errors=tuple(errors)
    )


def _end_s(arrivals: Arrivals, experiment: Experiment) -> float:
    ticks = float(arrivals.at_s[-1]) // experiment.tick_s + 1.0
    return ticks * experiment.tick_s


def _split_s(duration_s: float, experiment: Experiment) -> float:
    """The end of the first part, at a tick's edge."""
    tick_s = experiment.tick_s
    return round(duration_s * experiment.tune_first / tick_s) * tick_s


def coarse_errors(
    scores: Mapping[str, Mapping[float, Sequence[Score]]], sample: Arrivals, experiment: Experiment
) -> list[CoarseError]:
    """Coarse against exact for each policy's chosen setting, on SAMPLE_REQUESTS of `sample`."""
    if len(sample) < 2:
        return []
    sample = sample.between(0.0, float(sample.at_s[min(SAMPLE_REQUESTS, len(sample) - 1)]))
    future = future_of(sample, experiment.profile, experiment.tick_s)
    errors = []
    for name, found in scores.items():
        setting = choose(found, experiment.violation_max)
        pair = [
            play(name, setting, sample, experiment, future, coarse=coarse)
            for coarse in (True, False)
        ]
        shares = [run.violation_share(experiment.slo_ttft_s) for run in pair]
        hours = [run.replica_hours for run in pair]
        errors.append(
            CoarseError(
                policy=name,
                setting=setting,
                requests=len(sample),
                violation_share=(shares[0], shares[1]),
                replica_hours=(hours[0], hours[1]),
            )
        )
    return errors
