"""Scalers on two weeks of a production pool's rates: profiles x cold starts x seeds, one table.

    make bench-scaling                          all of it, within an hour on one core
    python bench/scaling.py --policy hpa        only some; others that were played are kept
    python bench/scaling.py --minutes 8         as far as it comes; the next call goes on
    python bench/scaling.py --show              the table of what was played so far
    python bench/scaling.py --afresh            forget what was played

Coarse replays, week one tunes, week two scores. The coarse replay's error is measured beside it:
each policy's chosen setting, 100,000 requests of the second week, against the exact replay.
Writes bench/out/scaling.md, and scaling.json: every score by seed, the rows, and the CPU seconds of
each part, of the arrivals and of the exact replays.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _scaling_page import page

from bul.scaling.bounds import Bounds
from bul.simulator.arrivals import Arrivals, read_workload
from bul.simulator.compare import COMPARED, Experiment, Score, play, score, settings_of
from bul.simulator.oracle import Future, future_of
from bul.simulator.race import arrivals_of, coarse_errors
from bul.simulator.replica import PROFILES
from bul.simulator.table import rows

ROOT = Path(__file__).resolve().parent.parent
TRACE = ROOT.parent / "shared" / "data" / "servegen_m-large.csv.gz"
OUT = ROOT / "bench" / "out" / "scaling.json"
SCALE, MAX_REPLICAS, DAYS, DAY_S = 0.05, 60, 14, 86_400.0
ASKED = 0.01
ORDER = ("adaptive", "hpa", "ray", "fixed", "kpa", "keda", "guide", "oracle")
COLD_STARTS = (30.0, 120.0, 300.0)
FIXED_SIZES = {"8b": (11, 20), "70b": (15, 28)}
"""From over 10 % to under 0.5 % of violations; every size between them."""
Kept = dict[str, Any]


def experiment_of(profile: str, cold_start_s: float, name: str) -> Experiment:
    low, high = FIXED_SIZES[profile] if name == "fixed" else (1, MAX_REPLICAS)
    return Experiment(
        profile=PROFILES[profile],
        bounds=Bounds(min_replicas=low, max_replicas=high),
        cold_start_s=cold_start_s,
        violation_max=ASKED,
        coarse=True,
    )


def parts(profiles: list[str], names: list[str], seed: int) -> list[tuple[str, float, str]]:
    """What there is to play of a seed."""
    return list(_parts(profiles, [n for n in names if n != "oracle" or seed == 0]))


def _parts(profiles: list[str], names: list[str]) -> Iterator[tuple[str, float, str]]:
    """Profile by profile, since the replay keeps one's arrivals; the closest rivals first. One
    fixed fleet stands for all cold starts, since it has none; and `oracle`, which is no rival, for
    all seeds.
    """
    for profile in profiles:
        for name in sorted(names, key=ORDER.index):
            for cold_start_s in COLD_STARTS:
                if name != "fixed" or cold_start_s == COLD_STARTS[0]:
                    yield profile, cold_start_s, name


def key_of(profile: str, cold_start_s: float, name: str) -> str:
    return f"{profile} {COLD_STARTS[0] if name == 'fixed' else cold_start_s:g} {name}"


def play_part(arrivals: Arrivals, future: Future, experiment: Experiment, name: str) -> Kept:
    """Setting -> score, of one seed."""
    found = {}
    for setting in settings_of(name, experiment):
        report = play(name, setting, arrivals, experiment, future)
        end_s = DAYS * DAY_S
        found[f"{setting:g}"] = dataclasses.asdict(
            score(report, end_s / 2, end_s, experiment.slo_ttft_s)
        )
    return found


def play_seed(kept: Kept, seed: int, todo: list[tuple[str, float, str]], until_s: float) -> bool:
    """Play what is missing; False if the time was up before."""
    missing = [part for part in todo if str(seed) not in kept["scores"].get(key_of(*part), {})]
    if not missing:
        return True
    started_s = time.process_time()
    arrivals = arrivals_of(read_workload(TRACE), SCALE, seed, DAYS)
    kept["cpu_s"][f"arrivals {seed}"] = round(time.process_time() - started_s, 1)
    futures: dict[str, Future] = {}
    for profile, cold_start_s, name in missing:
        if time.monotonic() > until_s:
            return False
        started_s = time.process_time()
        if profile not in futures:
            futures[profile] = future_of(arrivals, PROFILES[profile], 15.0)
        experiment = experiment_of(profile, cold_start_s, name)
        found = play_part(arrivals, futures[profile], experiment, name)
        key = key_of(profile, cold_start_s, name)
        kept["scores"].setdefault(key, {})[str(seed)] = found
        cpu_s = round(time.process_time() - started_s, 1)
        kept["cpu_s"][f"{key} {seed}"] = cpu_s
        print(f"seed {seed}, {key}: {cpu_s} s", file=sys.stderr, flush=True)
        save(kept)
    return True


def save(kept: Kept) -> None:
    OUT.parent.mkdir(exist_ok=True)
    fresh = OUT.with_suffix(".new")
    fresh.write_text(json.dumps(kept, indent=1))
    fresh.replace(OUT)


def scores_of(kept: Kept, profile: str, cold_start_s: float) -> dict[str, dict[float, list[Score]]]:
    """Policy -> setting -> one score per seed, of what was played."""
    found: dict[str, dict[float, list[Score]]] = {}
    for name in COMPARED:
        by_seed = kept["scores"].get(key_of(profile, cold_start_s, name), {})
        for seed in sorted(by_seed):
            for setting, values in by_seed[seed].items():
                own = found.setdefault(name, {}).setdefault(float(setting), [])
                own.append(Score(**values))
    return found


def errors_of(scores: Mapping[str, Any], profile: str, cold_start_s: float) -> list[Kept]:
    """The coarse replay of seed 0 against the exact one, where the second week begins."""
    days = arrivals_of(read_workload(TRACE), SCALE, 0, DAYS / 2 + 0.3)
    sample = days.between(DAYS / 2 * DAY_S, DAYS * DAY_S)
    experiment = experiment_of(profile, cold_start_s, "")
    return [dataclasses.asdict(error) for error in coarse_errors(scores, sample, experiment)]


def show(profile: str, cold_start_s: float, table: list[Any], hours: Mapping[str, Any]) -> None:
    print(f"\nprofile {profile}, cold start {cold_start_s:g} s, second week")
    print("policy     setting          first   second  worst 5m   hours  spread   turns")
    for row in table:
        print(
            f"{row['policy']:9}{row['setting']:9g} {'chosen' if row['chosen'] else '':7}"
            f"{row['first_violation_share']:7.2%}{row['violation_share']:9.2%}"
            f"{row['worst_5min_share']:10.1%}{row['replica_hours']:8.0f}"
            f"{row['seeds_spread']['violation_share']:8.2%}{row['reversals']:8}"
        )
    for share in ("0.01", "0.02"):
        own = hours.get("adaptive", {}).get(share)
        for name, at in hours.items():
            if name in {"adaptive", "oracle"} or own is None:
                continue
            rival = at[share]
            less = "outside its settings" if rival is None else f"{1.0 - own / rival:.1%} less"
            print(f"at {share}: adaptive {own:.0f} h, {name} {rival or 0:.0f} h: {less}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="append", choices=sorted(FIXED_SIZES))
    parser.add_argument("--policy", action="append", choices=COMPARED)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--afresh", action="store_true")
    given = parser.parse_args()
    kept: Kept = {"scores": {}, "cpu_s": {}}
    if OUT.exists() and not given.afresh:
        kept |= json.loads(OUT.read_text())
    profiles, names = given.profile or ["8b", "70b"], given.policy or list(COMPARED)
    until_s = time.monotonic() + 60.0 * given.minutes
    if not given.show and not all(
        play_seed(kept, seed, parts(profiles, names, seed), until_s) for seed in range(given.seeds)
    ):
        print("time is up; call again to go on")
        return
    kept["parts"], started_s = {}, time.process_time()
    for profile in profiles:
        for cold_start_s in COLD_STARTS:
            scores = scores_of(kept, profile, cold_start_s)
            if not scores:
                continue
            table, hours = rows(scores, ASKED)
            show(profile, cold_start_s, table, hours)
            errors = errors_of(scores, profile, cold_start_s)
            kept["parts"][f"{profile} {cold_start_s:g}"] = {
                "rows": table, "hours_at": hours, "coarse_error": errors
            }  # fmt: skip
    kept["cpu_s"]["exact replays"] = round(time.process_time() - started_s, 1)
    save(kept)
    seeds = {key: len(found) for key, found in kept["scores"].items() if "adaptive" in key}
    OUT.with_suffix(".md").write_text(page(kept["parts"], seeds))
    print(f"\n{sum(kept['cpu_s'].values()) / 60.0:.0f} minutes of CPU in all")


if __name__ == "__main__":
    main()
