"""Each published rule AT its boundaries: mutants of `>` and `>=` live there."""

from __future__ import annotations

from typing import Any

import pytest

from bul.errors import ConfigError
from bul.scaling.bounds import Bounds
from bul.scaling.decide import Policy, decide
from bul.scaling.decision import Direction
from bul.scaling.registry import POLICY_NAMES, PRESETS, knob_of, make_policy, make_state
from bul.scaling.rules import RuleState, should_scale_up
from bul.scaling.signals import Signals
from bul.testing.signals import signals_at

WIDE = Bounds(min_replicas=1, max_replicas=40)


def wanted(name: str, state: RuleState | None = None, now_s: float = 0.0, **changed: Any) -> int:
    """Replicas that the rule wants of 4, after one tick."""
    settings = changed.pop("settings", {})
    policy = make_policy(name, bounds=WIDE, **settings)
    decision, _ = decide(policy, state or RuleState(), signals_at(now_s, **changed), now_s)
    return decision.replicas


@pytest.mark.parametrize(
    ("p95_ms", "busy", "replicas"),
    [
        (500.0, 0.5, 4),
        (500.1, 0.5, 5),
        (300.0, 0.8, 4),
        (300.0, 0.801, 5),
        (249.9, 0.299, 3),
        (250.0, 0.299, 4),
        (249.9, 0.3, 4),
        (501.0, 0.1, 5),
    ],
)
def test_the_guide_steps_only_beyond_its_thresholds(
    p95_ms: float, busy: float, replicas: int
) -> None:
    assert wanted("guide", ttft_p95_ms=p95_ms, utilization=busy) == replicas


@pytest.mark.parametrize(("now_s", "replicas"), [(299.9, 4), (300.0, 5)])
def test_five_minutes_pass_between_scale_ups_of_the_variable_scenario(
    now_s: float, replicas: int
) -> None:
    settings = dict(PRESETS["variable"].settings)
    state = RuleState(last_up_s=0.0)
    assert wanted("guide", state, now_s, utilization=0.76, settings=settings) == replicas


@pytest.mark.parametrize(("now_s", "replicas"), [(599.9, 4), (600.0, 3)])
def test_ten_minutes_pass_before_a_scale_down_of_the_variable_scenario(
    now_s: float, replicas: int
) -> None:
    settings = dict(PRESETS["variable"].settings)
    state = RuleState(last_down_s=0.0)
    quiet = {"utilization": 0.24, "ttft_p95_ms": 100.0}
    assert wanted("guide", state, now_s, settings=settings, **quiet) == replicas


@pytest.mark.parametrize(
    ("metric", "value", "up"),
    [
        ("requests_per_second", 1000.0, False),
        ("requests_per_second", 1000.1, True),
        ("p95_latency", 500.0, False),
        ("p95_latency", 500.1, True),
        ("cpu_utilization", 0.8, False),
        ("cpu_utilization", 0.81, True),
        ("error_rate", 0.01, False),
        ("error_rate", 0.011, True),
    ],
)
def test_should_scale_up_looks_at_four_of_the_seven_metrics(
    metric: str, value: float, up: bool
) -> None:
    calm = {
        "requests_per_second": 10.0,
        "p95_latency": 100.0,
        "cpu_utilization": 0.1,
        "error_rate": 0.0,
    }
    assert should_scale_up(calm | {metric: value}) is up


@pytest.mark.parametrize(
    ("in_flight", "replicas"),
    [(28.9, 4), (28.7, 4), (27.9, 4), (35.1, 4), (35.3, 5), (64.0, 8), (320.0, 8)],
)
def test_hpa_keeps_its_tolerance_and_its_rate_limit(in_flight: float, replicas: int) -> None:
    assert wanted("hpa", in_flight=in_flight) == replicas


@pytest.mark.parametrize(("age_s", "replicas"), [(299.0, 4), (300.0, 2)])
def test_hpa_comes_down_to_the_highest_wish_of_five_minutes(age_s: float, replicas: int) -> None:
    state = RuleState(history=((0.0, 4.0),))
    assert wanted("hpa", state, age_s, in_flight=16.0) == replicas


@pytest.mark.parametrize(("waiting", "replicas"), [(20.0, 4), (21.9, 4), (22.1, 5), (40.0, 8)])
def test_keda_counts_waiting_requests(waiting: float, replicas: int) -> None:
    assert wanted("keda", waiting=waiting) == replicas


def test_keda_does_nothing_between_two_polls() -> None:
    assert wanted("keda", RuleState(since_s=0.0), 29.9, waiting=100.0) == 4
    assert wanted("keda", RuleState(since_s=0.0), 30.0, waiting=100.0) == 8


def ticks(name: str, in_flight: list[float], step_s: float = 6.0, ready: int = 4) -> list[int]:
    """Wishes of the rule over ticks at which the fleet stays as it is."""
    policy, state, wishes = make_policy(name, bounds=WIDE), make_state(name), []
    for index, value in enumerate(in_flight):
        now_s = index * step_s
        signals = signals_at(now_s, ready, in_flight=value)
        decision, state = decide(policy, state, signals, now_s)
        wishes.append(decision.replicas)
    return wishes


def test_knative_panics_at_twice_its_fleet_and_not_below() -> None:
    calm = [20.0] * 10
    assert ticks("kpa", [*calm, 8 * 0.7 * 8.0])[-1] >= 8
    assert ticks("kpa", [*calm, 8 * 0.7 * 6.9])[-1] < 8


def test_ray_waits_for_its_delays() -> None:
    up = ticks("ray", [40.0] * 8)
    assert up[:5] == [4] * 5
    assert max(up) == 20
    down = ticks("ray", [2.0] * 102)
    assert down[:100] == [4] * 100
    assert min(down) == 1


def changed(values: dict[str, Any]) -> Signals:
    return signals_at(0.0, **values)


@pytest.mark.parametrize("name", POLICY_NAMES)
@pytest.mark.parametrize("broken", [None, float("nan"), float("inf"), -1.0])
def test_no_policy_moves_without_the_data_that_it_needs(name: str, broken: float | None) -> None:
    policy = make_policy(name, bounds=WIDE)
    for field in policy.needs:
        signals = changed({field: broken})
        decision, _ = decide(policy, make_state(name), signals, 0.0)
        assert (decision.direction, decision.replicas) == (Direction.HOLD, 4)
        assert field in decision.reason


@pytest.mark.parametrize(("age_s", "trusted"), [(60.0, True), (60.1, False), (-1.1, False)])
def test_old_signals_and_signals_from_the_future_hold(age_s: float, trusted: bool) -> None:
    policy: Policy[Any] = make_policy("fixed", replicas=9, bounds=WIDE)
    decision, _ = decide(policy, RuleState(), signals_at(100.0), 100.0 + age_s)
    assert (decision.direction is Direction.UP) is trusted


def test_limits_hold_and_are_named_in_the_reason() -> None:
    low, high = (make_policy("fixed", replicas=n, bounds=Bounds()) for n in (1, 50))
    down, _ = decide(low, RuleState(), signals_at(0.0), 0.0)
    up, _ = decide(high, RuleState(), signals_at(0.0), 0.0)
    assert (down.replicas, up.replicas) == (2, 10)
    assert "min_replicas=2" in down.reason
    assert "max_replicas=10" in up.reason


def test_nothing_is_stopped_while_something_starts() -> None:
    policy = make_policy("fixed", replicas=2)
    decision, _ = decide(policy, RuleState(), signals_at(0.0, replicas_pending=1), 0.0)
    assert decision.direction is Direction.HOLD


def test_an_unknown_name_or_setting_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(ConfigError, match="did you mean adaptive"):
        make_policy("adaptiv")
    with pytest.raises(ConfigError, match="did you mean violation_max"):
        make_policy("adaptive", violation_mx=0.1)
    with pytest.raises(ConfigError, match="violation_max must be in"):
        make_policy("adaptive", violation_max=0.0)


def test_the_presets_are_the_guides() -> None:
    limits = {name: (p.min_replicas, p.max_replicas) for name, p in PRESETS.items()}
    assert limits == {"traffic-spikes": (3, 20), "constant-high": (10, 10), "variable": (2, 15)}
    assert [knob_of(name) for name in ("adaptive", "fixed")] == ["violation_max", "replicas"]
    for preset in PRESETS.values():
        make_policy("guide", **preset.settings)
