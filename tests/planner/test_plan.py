"""Fleets, costs and findings, with a simulator that is a formula, and once with the real one."""

from __future__ import annotations

import dataclasses

import pytest

from bul.errors import ConfigError
from bul.planner.phases import PHASES, SCENARIOS, phase_for, scenario_named
from bul.planner.plan import Plan, Question, cost_per_day, make_plan, needed
from bul.planner.predict import Prediction, Workload, least_replicas, output_rate, predict
from bul.simulator.replica import PROFILES, ReplicaProfile

pytestmark = pytest.mark.steady

WORKLOAD = Workload(
    requests_per_second=30.0, prompt_tokens=1000, output_tokens=150, shared_prefix=0.6
)


def formula(workload: Workload, profile: ReplicaProfile, replicas: int, cache: bool) -> Prediction:
    """A waiting time that grows without end as the fleet comes near its limit."""
    work = workload.computed_tokens(cache=cache) / profile.prefill_tokens_per_s
    work += workload.output_tokens / output_rate(workload, profile)
    busy = workload.requests_per_second * work / replicas
    p95_ms = 100.0 / max(1.0 - busy, 1e-6)
    return Prediction(replicas=replicas, ttft_p50_ms=50.0, ttft_p95_ms=p95_ms, busy=busy)


def question(**changes: object) -> Question:
    asked = Question(
        workload=WORKLOAD,
        slo_p95_ms=500.0,
        phase=PHASES[1],
        scenario=SCENARIOS["constant-high"],
        profile=PROFILES["8b"],
        price_per_replica_hour=2.0,
    )
    return dataclasses.replace(asked, **changes)  # type: ignore[arg-type]  # fields by name


def plan(**changes: object) -> Plan:
    return make_plan(question(**changes), formula)


@pytest.mark.parametrize(
    ("rate", "number"), [(99.9, 1), (100.0, 2), (499.9, 2), (500.0, 3), (2000.0, 4), (1e6, 4)]
)
def test_a_phase_begins_at_its_limit(rate: float, number: int) -> None:
    assert phase_for(rate).number == number


def test_an_unknown_scenario_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="traffic-spikes"):
        scenario_named("storm")


def test_the_fewest_replicas_that_hold_the_target_are_found() -> None:
    found = needed(question(), formula, factor=1.0, cache=False)
    assert found is not None
    profile = PROFILES["8b"]
    assert formula(WORKLOAD, profile, found, cache=False).ttft_p95_ms <= 500.0
    assert formula(WORKLOAD, profile, found - 1, cache=False).ttft_p95_ms > 500.0


def test_a_target_below_one_idle_replica_is_refused_with_the_reason() -> None:
    found = plan(slo_p95_ms=50.0, workload=dataclasses.replace(WORKLOAD, shared_prefix=0.0))
    assert not found.feasible
    assert all("one idle replica already needs" in o.reasons[0] for o in found.options)
    assert any("no number of replicas" in finding for finding in found.findings)


def test_what_the_cache_saves_is_the_difference_of_two_fleets() -> None:
    found = plan(workload=dataclasses.replace(WORKLOAD, requests_per_second=300.0))
    assert found.fleet is not None
    assert found.fleet_without_cache is not None
    assert found.fleet.replicas_max < found.fleet_without_cache.replicas_max
    asked = found.question
    assert cost_per_day(asked, found.fleet) < cost_per_day(asked, found.fleet_without_cache)


def test_without_a_shared_prefix_the_cache_saves_nothing() -> None:
    found = plan(workload=dataclasses.replace(WORKLOAD, shared_prefix=0.0))
    assert found.fleet == found.fleet_without_cache


def test_cost_is_mean_replicas_by_hours_by_price() -> None:
    found = plan()
    assert found.fleet is not None
    assert cost_per_day(found.question, found.fleet) == found.fleet.mean * 24.0 * 2.0


def test_a_fixed_scenario_has_one_size_and_spikes_have_two() -> None:
    fixed, spikes = plan().fleet, plan(scenario=SCENARIOS["traffic-spikes"]).fleet
    assert fixed is not None
    assert spikes is not None
    assert fixed.replicas_min == fixed.replicas_max == fixed.mean
    assert spikes.replicas_min < spikes.mean < spikes.replicas_max


def test_spikes_during_cold_starts_are_a_finding_and_quick_starts_are_not() -> None:
    slow = plan(scenario=SCENARIOS["traffic-spikes"], cold_start_s=300.0)
    quick = plan(scenario=SCENARIOS["traffic-spikes"], cold_start_s=1.0)
    assert any("cold starts of 300 s" in finding for finding in slow.findings)
    assert not any("cold starts" in finding for finding in quick.findings)


def test_a_load_beyond_the_guides_fleet_is_a_finding() -> None:
    found = plan(workload=dataclasses.replace(WORKLOAD, requests_per_second=400.0))
    assert any("the guide provides 2 to 3 replicas" in finding for finding in found.findings)


def test_every_figure_says_where_it_comes_from() -> None:
    sources = {"asked", "measured", "simulated", "guide", "assumed"}
    assert {figure.source for figure in plan().figures} <= sources
    measured = dataclasses.replace(PROFILES["8b"], measured=True)
    by_name = {figure.name: figure for figure in plan(profile=measured).figures}
    assert by_name["prefill_tokens_per_s"].source == "measured"
    assert {f.name: f.source for f in plan().figures}["prefill_tokens_per_s"] == "assumed"


def test_ram_holds_two_full_batches_even_where_the_guide_has_less() -> None:
    assert plan().cache["max_tokens"] == 32_768
    short = dataclasses.replace(WORKLOAD, prompt_tokens=100)
    assert plan(workload=short).cache["max_tokens"] == 16_384


def test_cached_tokens_are_full_blocks_and_never_the_last_token() -> None:
    assert WORKLOAD.cached_tokens == 576
    whole = Workload(requests_per_second=1.0, prompt_tokens=128, output_tokens=1, shared_prefix=1.0)
    assert whole.cached_tokens == 64


@pytest.mark.slow
def test_the_simulator_waits_longer_with_fewer_replicas_and_repeats_itself() -> None:
    profile, work = PROFILES["8b"], dataclasses.replace(WORKLOAD, requests_per_second=10.0)
    least = least_replicas(work, profile, cache=True)
    tight = predict(work, profile, replicas=least, cache=True, seed=1)
    wide = predict(work, profile, replicas=2 * least, cache=True, seed=1)
    assert tight.ttft_p95_ms > wide.ttft_p95_ms
    assert wide == predict(work, profile, replicas=2 * least, cache=True, seed=1)
    assert wide != predict(work, profile, replicas=2 * least, cache=True, seed=2)
