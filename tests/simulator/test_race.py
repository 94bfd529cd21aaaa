"""The comparison: fair, repeatable, and its coarse replay near the exact one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from bul.errors import ConfigError
from bul.scaling.bounds import Bounds
from bul.scaling.decision import Direction
from bul.simulator.arrivals import Arrivals, RateWindows, draw_all, read_workload, thin
from bul.simulator.compare import COMPARED, Experiment, Score, hours_at, play, score, settings_of
from bul.simulator.oracle import future_of
from bul.simulator.plot import render
from bul.simulator.race import arrivals_of, race
from bul.simulator.replica import PROFILES
from bul.simulator.report import RegionReport
from bul.simulator.shapes import SHAPES, shape
from bul.simulator.table import choose, rows

pytestmark = pytest.mark.steady

EXPERIMENT = Experiment(
    profile=PROFILES["8b"], bounds=Bounds(min_replicas=1, max_replicas=20), coarse=True
)


def calm(hours: float, rate: float = 5.0, cv: float = 1.5) -> RateWindows:
    at_s = np.arange(0.0, hours * 3600.0, 600.0)
    same = np.ones(len(at_s))
    return RateWindows(
        window_s=600.0,
        at_s=at_s,
        requests_per_second=rate * same,
        cv=cv * same,
        prompt_tokens_mean=800.0 * same,
        output_tokens_mean=150.0 * same,
    )


def test_the_same_seed_draws_the_same_requests_at_the_rate_asked() -> None:
    one, two, other = (draw_all(calm(4), 0.5, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.at_s, two.at_s)
    assert len(one) != len(other)
    assert len(one) == pytest.approx(4 * 3600 * 2.5, rel=0.1)
    assert np.all(np.diff(one.at_s) >= 0)
    assert one.prompt_tokens.mean() == pytest.approx(800, rel=0.05)


def test_the_same_run_twice_is_the_same_to_the_last_step() -> None:
    arrivals = draw_all(calm(1), 1.0, 3)
    future = future_of(arrivals, EXPERIMENT.profile, 15.0)
    runs = [play("adaptive", 0.01, arrivals, EXPERIMENT, future, coarse=False) for _ in range(2)]
    assert runs[0].steps == runs[1].steps
    assert np.array_equal(runs[0].ttft_s, runs[1].ttft_s)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2.0, 3.0, 5.0])
def test_the_coarse_replay_is_near_the_exact_one(replicas: float) -> None:
    arrivals = draw_all(calm(2, rate=6.0, cv=2.0), 1.0, 5)
    future = future_of(arrivals, EXPERIMENT.profile, 15.0)
    coarse, exact = (
        play("fixed", replicas, arrivals, EXPERIMENT, future, coarse=flag) for flag in (True, False)
    )
    assert coarse.replica_hours == pytest.approx(exact.replica_hours, rel=0.01)
    shares = [run.violation_share(0.5) for run in (coarse, exact)]
    assert abs(shares[0] - shares[1]) <= max(0.4 * max(shares), 0.01), shares


@pytest.mark.slow
@pytest.mark.parametrize(("name", "setting"), [("hpa", 8.0), ("adaptive", 0.02)])
def test_the_coarse_replay_leads_a_scaler_as_the_exact_one_does(name: str, setting: float) -> None:
    """Of three draws together: one that learns turns small differences into larger ones."""
    hours, shares = np.zeros(2), np.zeros(2)
    for seed in (5, 6, 7):
        arrivals = draw_all(calm(3, rate=6.0, cv=3.0), 1.0, seed)
        future = future_of(arrivals, EXPERIMENT.profile, 15.0)
        runs = [play(name, setting, arrivals, EXPERIMENT, future, coarse=c) for c in (True, False)]
        hours += [run.replica_hours for run in runs]
        shares += [run.violation_share(0.5) / 3 for run in runs]
    assert hours[0] == pytest.approx(hours[1], rel=0.05)
    assert shares[0] == pytest.approx(shares[1], rel=0.4)


def test_no_request_is_lost_and_none_is_answered_before_it_came() -> None:
    arrivals = draw_all(calm(1), 1.0, 3)
    future = future_of(arrivals, EXPERIMENT.profile, 15.0)
    report = play("hpa", 8.0, arrivals, EXPERIMENT, future, coarse=False)
    assert len(report.ttft_s) == len(arrivals)
    assert np.all(report.ttft_s > 0)
    assert np.all(np.isfinite(report.ttft_s))


def test_starts_and_drains_are_paid_for() -> None:
    arrivals = draw_all(calm(1), 1.0, 3)
    future = future_of(arrivals, EXPERIMENT.profile, 15.0)
    report = play("fixed", 3.0, arrivals, EXPERIMENT, future, coarse=False)
    assert report.replica_hours == pytest.approx(3.0, abs=0.05)


def spikes_left(name: str, setting: float) -> tuple[int, int]:
    """(spikes, spikes after which the fleet was back down within cold start + 2 cooldowns)."""
    workload = shape("synthetic-traffic-spikes", 0.5)
    arrivals = draw_all(workload, 1.0, 1)
    experiment = dataclasses.replace(EXPERIMENT, bounds=Bounds(min_replicas=3, max_replicas=20))
    future = future_of(arrivals, experiment.profile, 15.0)
    report = play(name, setting, arrivals, experiment, future)
    fleet = np.rint(report.replica_seconds / 15.0)
    came_down = 0
    starts = [7200.0 * k for k in range(1, 6)]
    for start_s in starts:
        end_s = start_s + 600.0
        due_s = end_s + experiment.cold_start_s + 2 * 600.0
        during = fleet[int(start_s // 15) : int((end_s + 120.0) // 15)].max()
        after = fleet[int(due_s // 15)]
        came_down += during > after
    assert sum(step.decision.direction is Direction.UP for step in report.steps) > 0
    return len(starts), came_down


def test_adaptive_comes_down_after_every_spike() -> None:
    spikes, came_down = spikes_left("adaptive", 0.01)
    assert came_down == spikes


def test_the_guides_rule_never_does() -> None:
    """The control."""
    assert spikes_left("guide", 0.7)[1] == 0


def test_each_policy_gets_the_same_number_of_settings_and_fixed_every_size() -> None:
    counts = {name: len(settings_of(name, EXPERIMENT)) for name in COMPARED}
    assert counts.pop("fixed") == 20
    assert set(counts.values()) == {6}
    assert 0.01 in settings_of("adaptive", EXPERIMENT)


def made(first: tuple[float, float], second: tuple[float, float]) -> Score:
    return Score(
        first_violation_share=first[0],
        first_violation_bound=first[0],
        first_replica_hours=first[1],
        violation_share=second[0],
        worst_5min_share=0.1,
        replica_hours=second[1],
        ups=1,
        downs=1,
        reversals=0,
    )


def test_the_choice_sees_the_first_part_only() -> None:
    scores = {
        1.0: [made((0.010, 90.0), (0.9, 500.0))],
        2.0: [made((0.005, 100.0), (0.0, 1.0))],
        3.0: [made((0.011, 10.0), (0.0, 1.0))],
    }
    assert choose(scores, 0.01) == 1.0
    assert choose({s: scores[s] for s in (3.0,)}, 0.01) == 3.0
    table, _ = rows({"hpa": scores}, 0.01)
    assert [row["setting"] for row in table if row["chosen"]] == [1.0]


def test_half_an_hour_does_not_vouch_for_a_loose_setting() -> None:
    """Shares of a burst: in a day they count as they are, in half an hour with their error."""
    at_s = np.arange(0.0, 1800.0, 1.0)
    ttft_s = np.where(at_s < 15.0, 1.0, 0.1)  # 0.83 % slow, all of them in one stretch
    report = RegionReport(
        arrived_s=at_s,
        ttft_s=ttft_s,
        tick_s=15.0,
        replica_seconds=np.full(240, 30.0),
        steps=(),
        replicas_max=2,
    )
    short, long = score(report, 1800.0, 3600.0, 0.5), score(report, 86_400.0, 2 * 86_400.0, 0.5)
    assert short.first_violation_share == pytest.approx(15 / 1800)
    assert short.first_violation_bound > 0.01
    assert long.first_violation_bound == long.first_violation_share
    strict = dataclasses.replace(short, first_violation_bound=0.002, first_replica_hours=9.0)
    assert choose({1.0: [short], 2.0: [strict]}, 0.01) == 2.0
    assert choose({1.0: [long], 2.0: [dataclasses.replace(strict)]}, 0.01) == 1.0


def test_hours_at_lies_between_neighbours_and_is_none_outside() -> None:
    points = [(0.04, 100.0), (0.01, 200.0), (0.001, 400.0)]
    assert hours_at(points, 0.02) == pytest.approx(150.0)
    assert hours_at(points, 0.01) == pytest.approx(200.0)
    assert hours_at(points, 0.05) is None
    assert hours_at(points, 0.0005) is None
    assert hours_at([(0.0, 5.0), (0.02, 3.0)], 0.02) == pytest.approx(3.0)


@pytest.mark.slow
def test_a_race_has_a_row_per_setting_and_an_error_of_its_coarse_replay() -> None:
    seen: list[tuple[int, int]] = []
    outcome = race(
        calm(2),
        EXPERIMENT,
        ("adaptive", "hpa", "oracle"),
        seeds=(0, 1),
        scale=1.0,
        progress=lambda _, done, total: seen.append((done, total)),
    )
    table, hours = rows(outcome.scores, 0.01)
    assert seen[-1] == (35, 36)
    assert len(table) == 18
    assert {row["policy"]: 0 for row in table if row["chosen"]} == dict.fromkeys(hours, 0)
    assert [error.policy for error in outcome.coarse_errors] == ["adaptive", "hpa", "oracle"]
    assert all(math.isfinite(error.violation_share[1]) for error in outcome.coarse_errors)
    page = render("a & b", "note", table)
    assert "a &amp; b" in page
    assert "http" not in page


def test_workloads_that_cannot_be_played_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"--scale .* fits"):
        arrivals_of(calm(4), 1e5, 0, None)
    with pytest.raises(ConfigError, match="unknown policy: nope"):
        race(calm(1), EXPERIMENT, ("nope",), seeds=(0,), scale=1.0)
    with pytest.raises(ConfigError, match="at most 1"):
        arrivals_of(draw_all(calm(1), 1.0, 0), 2.0, 0, None)
    with pytest.raises(ConfigError, match="unknown shape"):
        shape("synthetic-nothing", 1.0)
    assert all(name.startswith("synthetic-") for name in SHAPES)


def test_traces_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    windows = tmp_path / "w.csv"
    windows.write_text(
        "t_s,requests_per_second,cv,clients,tokens_in_mean,tokens_out_mean\n"
        "0,5,1.5,3,800,100\n600,6,1.5,3,800,100\n"
    )
    azure = tmp_path / "a.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.6805900,10,0\n"
    )
    blocks = tmp_path / "b.jsonl"
    blocks.write_text(
        '{"name": "b", "block": 16, "note": ""}\n'
        '{"t": 0.0, "in": 32, "out": 5, "ids": [1, 2], "s": -1}\n'
        '{"t": 1.0, "in": 48, "out": 5, "ids": [1, 2, 3], "s": -1}\n'
    )
    drawn, timed, cached = (read_workload(path) for path in (windows, azure, blocks))
    assert isinstance(drawn, RateWindows)
    assert drawn.window_s == 600.0
    assert isinstance(timed, Arrivals)
    assert timed.at_s.tolist() == pytest.approx([0.0, 1.0])
    assert isinstance(cached, Arrivals)
    assert cached.prompt_tokens.tolist() == [32, 48]
    assert cached.past_unbounded_cache().prompt_tokens.tolist() == [32, 16]
    assert len(thin(timed, 1.0, 0)) == 2


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "t_s,requests_per_second\n1,x\n"])
def test_a_damaged_trace_is_an_error_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.csv"):
        read_workload(path)
