"""Scalers on two weeks of a production pool's rates: profiles x cold starts x seeds, one table.

    make bench-scaling          all of it, within an hour on one core
    python bench/scaling.py --profile 8b --cold-start 120 --seeds 1

Coarse replays (their error against exact ones is in the output), week one tunes, week two scores.
Writes bench/out/scaling.json; parts run one by one are kept beside each other in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bul.scaling.bounds import Bounds
from bul.simulator.arrivals import read_workload
from bul.simulator.compare import COMPARED, Experiment
from bul.simulator.race import Outcome, race
from bul.simulator.replica import PROFILES
from bul.simulator.table import rows

ROOT = Path(__file__).parent.parent
TRACE = ROOT.parent / "shared" / "data" / "servegen_m-large.csv.gz"
OUT = ROOT / "bench" / "out" / "scaling.json"
SCALE, MAX_REPLICAS = 0.05, 60
FIXED_SIZES = {"8b": (6, 24), "70b": (8, 36)}
"""Every size that could be chosen; smaller ones drown, larger ones are never the cheapest."""


def play(
    profile: str, cold_start_s: float, names: tuple[str, ...], seeds: int, days: float
) -> Outcome:
    low, high = FIXED_SIZES[profile] if names == ("fixed",) else (1, MAX_REPLICAS)
    experiment = Experiment(
        profile=PROFILES[profile],
        bounds=Bounds(min_replicas=low, max_replicas=high),
        cold_start_s=cold_start_s,
        coarse=True,
    )

    def show(label: str, done: int, total: int) -> None:
        print(f"\r{profile} {cold_start_s:g} s {done}/{total} {label:40}", end="", file=sys.stderr)

    return race(
        read_workload(TRACE),
        experiment,
        names,
        seeds=range(seeds),
        scale=SCALE,
        days=days,
        progress=show,
    )


def part(profile: str, cold_start_s: float, outcomes: list[Outcome]) -> dict[str, object]:
    scores = {name: found for outcome in outcomes for name, found in outcome.scores.items()}
    table, hours = rows(scores, 0.01)
    errors = [vars_of(error) for outcome in outcomes for error in outcome.coarse_errors]
    return {
        "profile": profile,
        "cold_start_s": cold_start_s,
        "rows": table,
        "hours_at": hours,
        "coarse_error": errors,
    }


def vars_of(error: object) -> dict[str, object]:
    return {name: getattr(error, name) for name in getattr(error, "__slots__", ())}


def print_part(found: Mapping[str, object]) -> None:
    print(f"\n\nprofile {found['profile']}, cold start {found['cold_start_s']:g} s, second week")
    titles = ("setting", "", "violations", "worst 5m", "hours", "turns")
    print("policy   {:>9} {:7}{:>11}{:>9}{:>8}{:>7}".format(*titles))
    table = found["rows"]
    assert isinstance(table, list)
    for row in table:
        print(
            f"{row['policy']:9}{row['setting']:9g} {'chosen' if row['chosen'] else '':7}"
            f"{row['violation_share']:11.2%}{row['worst_5min_share']:9.1%}"
            f"{row['replica_hours']:8.0f}{row['reversals']:7}"
        )
    hours = found["hours_at"]
    assert isinstance(hours, dict)
    for share in ("0.01", "0.02"):
        rivals = {
            name: at[share]
            for name, at in hours.items()
            if at[share] is not None and name not in {"adaptive", "oracle"}
        }
        own = hours.get("adaptive", {}).get(share)
        if own and rivals:
            best = min(rivals, key=lambda name: rivals[name])
            less = 1.0 - own / rivals[best]
            rule = f"best rule {best} {rivals[best]:.0f} h"
            print(f"at {share}: adaptive {own:.0f} h, {rule}: {less:.1%} less")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="append", choices=sorted(FIXED_SIZES))
    parser.add_argument("--cold-start", action="append", type=float)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--days", type=float, default=14.0)
    given = parser.parse_args()
    others = tuple(name for name in COMPARED if name != "fixed")
    started_s = time.monotonic()
    kept = json.loads(OUT.read_text()) if OUT.exists() else {}
    for profile in given.profile or ("8b", "70b"):
        fixed = play(profile, 120.0, ("fixed",), given.seeds, given.days)  # no cold starts there
        for cold_start_s in given.cold_start or (30.0, 120.0, 300.0):
            outcome = play(profile, cold_start_s, others, given.seeds, given.days)
            found = part(profile, cold_start_s, [outcome, fixed])
            print_part(found)
            kept[f"{profile} {cold_start_s:g}"] = {**found, "seeds": given.seeds}
            OUT.parent.mkdir(exist_ok=True)
            OUT.write_text(json.dumps(kept, indent=1))
    print(f"\n{time.monotonic() - started_s:.0f} s")


if __name__ == "__main__":
    main()
