"""Scalers on pools that nobody has: the production pool's fortnight, made over into other traffic.

    make bench-pools                        some 15 minutes; bench/out/pools.json
    python bench/pools.py --pool bursty     one of them
    python bench/pools.py --days 14         twice as long to learn and to score

A check that `adaptive` was not made for one pool: nothing was chosen on these, but how much room
bursts take (`margin.ROOM_NOISE2`, on `bursty`). Coarse replays of 6 days, the first 3 to learn, the
rest scored; profile 8b with a cold start of 120 s and 70b with 30 s. Hours are compared at equal
shares of slow requests, 1 and 2 %, with whichever of `hpa`, `ray` and `kpa` needs the fewest there;
a rule whose settings do not reach a share has no hours at it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bul.scaling.bounds import Bounds
from bul.simulator.arrivals import RateWindows, read_workload
from bul.simulator.compare import Experiment, hours_at, play, score, settings_of
from bul.simulator.oracle import future_of
from bul.simulator.race import arrivals_of
from bul.simulator.replica import PROFILES
from scaling import SCALE, TRACE

OUT = Path(__file__).resolve().parent / "out" / "pools.json"
CELLS = (("8b", 120.0), ("70b", 30.0))
RULES = ("hpa", "ray", "kpa")
SHARES = (0.01, 0.02)
DAY = 144
"""Windows of ten minutes."""
TICK_S, DAY_S, SEED = 15.0, 86_400.0, 3


def _with_rates(windows: RateWindows, rates: np.ndarray[Any, Any]) -> RateWindows:
    """These rates, with the mean that the pool has."""
    mean = float(windows.requests_per_second.mean())
    return dataclasses.replace(windows, requests_per_second=rates * mean / rates.mean())


def _usual(windows: RateWindows) -> np.ndarray[Any, Any]:
    """The rates without what six hours even out."""
    padded = np.pad(windows.requests_per_second, 18, mode="edge")
    return np.convolve(padded, np.ones(37) / 37, mode="valid")


def _at(windows: RateWindows) -> np.ndarray[Any, Any]:
    return np.arange(len(windows.at_s))


def diurnal(windows: RateWindows) -> RateWindows:
    """Ten times as much at noon as at night, half at weekends, the pool's own unrest."""
    at = _at(windows)
    wave = np.maximum(0.5 - 0.5 * np.cos(2 * np.pi * at / DAY), 0.1)
    weekend = np.where(at // DAY % 7 >= 5, 0.5, 1.0)
    return _with_rates(windows, wave * weekend * windows.requests_per_second / _usual(windows))


def batch(windows: RateWindows) -> RateWindows:
    """Three times the rate for one hour each night."""
    at = _at(windows) % DAY
    jump = np.where((at >= 12) & (at < 18), 3.0, 1.0)
    return _with_rates(windows, jump * windows.requests_per_second)


def walk(windows: RateWindows) -> RateWindows:
    """A random walk, 12 % a window."""
    steps = np.random.default_rng(SEED).normal(0.0, 0.12, len(windows.at_s))
    return _with_rates(windows, np.exp(np.clip(np.cumsum(steps), -1.2, 1.2)))


def bursty(windows: RateWindows) -> RateWindows:
    """A CV of 4 between arrivals, always; the pool's median is 2."""
    return dataclasses.replace(windows, cv=np.full(len(windows.cv), 4.0))


def even(windows: RateWindows) -> RateWindows:
    """Independent arrivals."""
    return dataclasses.replace(windows, cv=np.ones(len(windows.cv)))


def reasoning(windows: RateWindows) -> RateWindows:
    """Replies five times as long, a third of the requests."""
    return dataclasses.replace(
        windows,
        output_tokens_mean=5 * windows.output_tokens_mean,
        requests_per_second=windows.requests_per_second / 3,
    )


def lengths(windows: RateWindows) -> RateWindows:
    """Replies are 1.8 times as long in every other quarter of a day."""
    factor = np.where(_at(windows) // 36 % 2 == 0, 1.0, 1.8)
    return dataclasses.replace(windows, output_tokens_mean=factor * windows.output_tokens_mean)


def backwards(windows: RateWindows) -> RateWindows:
    """The fortnight from its end: the bursts come first, and then calm days."""
    turned = {
        field.name: getattr(windows, field.name)[::-1].copy()
        for field in dataclasses.fields(windows)
        if field.name not in ("window_s", "at_s")
    }
    return dataclasses.replace(windows, **turned)


POOLS: dict[str, Callable[[RateWindows], RateWindows]] = {
    made.__name__: made
    for made in (diurnal, batch, walk, bursty, even, reasoning, lengths, backwards)
}


def measure(name: str, profile: str, cold_start_s: float, days: float) -> dict[str, Any]:
    arrivals = arrivals_of(POOLS[name](read_workload(TRACE)), SCALE, 0, days)
    future = future_of(arrivals, PROFILES[profile], TICK_S)
    experiment = Experiment(
        profile=PROFILES[profile],
        bounds=Bounds(min_replicas=1, max_replicas=80),
        cold_start_s=cold_start_s,
        violation_max=SHARES[0],
        coarse=True,
    )
    curves = {}
    for policy in ("adaptive", *RULES):
        curves[policy] = []
        for setting in settings_of(policy, experiment):
            report = play(policy, setting, arrivals, experiment, future)
            scored = score(report, days / 2 * DAY_S, days * DAY_S, experiment.slo_ttft_s)
            curves[policy].append((setting, scored.violation_share, scored.replica_hours))
    hours = {
        policy: [hours_at([point[1:] for point in curve], share) for share in SHARES]
        for policy, curve in curves.items()
    }
    held = next(share for setting, share, _ in curves["adaptive"] if setting == SHARES[0])
    return {
        "pool": name,
        "profile": profile,
        "cold_start_s": cold_start_s,
        "work_mean": round(float(future.mean.mean()), 2),
        "held_at_1_percent": held,
        "hours_at": hours,
        "curves": curves,
    }


def line(found: dict[str, Any]) -> str:
    text = (
        f"{found['pool']:10}{found['profile']:>5}{found['cold_start_s']:5.0f} s"
        f"{found['work_mean']:6.1f}{found['held_at_1_percent']:8.2%}"
    )
    for k in range(len(SHARES)):
        own = found["hours_at"]["adaptive"][k]
        rivals = {name: found["hours_at"][name][k] for name in RULES}
        known = {name: hours for name, hours in rivals.items() if hours is not None}
        best = min(known, key=lambda name: known[name], default="")
        shown = f"{own:7.0f}" if own is not None else f"{'-':>7}"
        rival = f"{known[best]:7.0f} {best:4}" if best else f"{'-':>7}     "
        less = f"{1.0 - own / known[best]:7.1%}" if best and own is not None else f"{'-':>7}"
        text += f"{shown}{rival}{less}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pool", action="append", choices=sorted(POOLS))
    parser.add_argument("--days", type=float, default=6.0)
    given = parser.parse_args()
    heads = "".join(f"{f'at {share:.0%}':>7}{'best rule':>12}{'less':>7}" for share in SHARES)
    print(f"{'pool':10}{'':5}{'cold':>7}{'work':>6}{'held':>8}{heads}")
    table = []
    for name in given.pool or POOLS:
        for profile, cold_start_s in CELLS:
            table.append(measure(name, profile, cold_start_s, given.days))
            print(line(table[-1]), flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
