"""Made hours of outages, NaN, jumps and driver faults: no policy may leave its limits."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bul.scaling.adaptive import Capacity
from bul.scaling.bounds import Bounds
from bul.scaling.decide import decide
from bul.scaling.decision import Direction
from bul.scaling.registry import POLICY_NAMES, make_policy, make_state
from bul.scaling.signals import Signals
from bul.testing.signals import signals_at

pytestmark = pytest.mark.steady

BOUNDS = Bounds(min_replicas=2, max_replicas=12)
TICK_S = 15.0
HOURS_A_RUN = 10
CAPACITY = Capacity(prefill_tokens_per_s=15_000.0, output_tokens_per_s=390.0, slots=16)
FAULTS = ("none", "outage", "nan", "missing", "stale", "future", "negative", "huge")
NUMBERS = tuple(
    name
    for name in Signals.__struct_fields__
    if name not in {"measured_at_s", "replicas_ready", "replicas_pending"}
)


def changed(signals: Signals, values: dict[str, Any]) -> Signals:
    return replace(signals, **values)


def broken(signals: Signals, fault: str, rng: random.Random) -> tuple[Signals | None, bool]:
    """The signals under a fault, and whether anything in them may be believed."""
    field = rng.choice(NUMBERS)
    match fault:
        case "outage":
            return None, False
        case "nan":
            return changed(signals, dict.fromkeys(NUMBERS, math.nan)), False
        case "missing":
            return changed(signals, dict.fromkeys(NUMBERS, None)), False
        case "stale":
            return replace(signals, measured_at_s=signals.measured_at_s - 100), False
        case "future":
            return replace(signals, measured_at_s=signals.measured_at_s + 100), False
        case "negative":
            return changed(signals, {field: -1.0}), True
        case "huge":
            return changed(signals, {field: rng.choice((1e9, 1e300))}), True
    return signals, True


def trusting(policy: Any, state: Any, signals: Signals | None, now_s: float) -> Any:
    """The control: what is missing is nought, what is NaN too, and no age is too old."""
    if signals is None:
        signals = signals_at(now_s, 4)
    values = {name: getattr(signals, name) for name in NUMBERS}
    known = {name: v for name, v in values.items() if v is not None and not math.isnan(v)}
    known = dict.fromkeys(NUMBERS, 0.0) | known
    return decide(policy, state, changed(signals, known | {"measured_at_s": now_s}), now_s)


def play(name: str, seed: int, hours: int, decides: Any = decide) -> int:
    """Ticks `hours` of made signals; asserts the safety rules at each. Returns the scale-downs."""
    extra: dict[str, Any] = {"capacity": CAPACITY} if name == "adaptive" else {}
    policy, state = make_policy(name, bounds=BOUNDS, **extra), make_state(name)
    rng, replicas, now_s, downs, fault = random.Random(seed), 4, 0.0, 0, "none"
    load = 4.0
    for _ in range(int(hours * 3600 / TICK_S)):
        now_s += rng.choice((TICK_S, TICK_S, TICK_S, 2 * TICK_S, 600.0 * (rng.random() < 0.02)))
        if rng.random() < 0.05:
            fault = rng.choice(FAULTS) if rng.random() < 0.5 else "none"
            load = rng.uniform(0.0, 15.0)
        pending = min(rng.choice((0, 0, 0, 1)), replicas - 1)
        signals, believable = broken(made(now_s, replicas, pending, load, rng), fault, rng)
        decision, new_state = decides(policy, state, signals, now_s)
        assert decision.reason
        if decision.direction is not Direction.HOLD:
            assert believable, (name, seed, fault, decision)
            assert BOUNDS.min_replicas <= decision.replicas <= BOUNDS.max_replicas
            assert (decision.replicas > replicas) is (decision.direction is Direction.UP)
        downs += decision.direction is Direction.DOWN
        if decision.direction is Direction.HOLD or rng.random() < 0.8:  # else the driver failed
            state = new_state
            replicas = decision.replicas if decision.direction is not Direction.HOLD else replicas
    return downs


def made(now_s: float, replicas: int, pending: int, load: float, rng: random.Random) -> Signals:
    noise = rng.uniform(0.8, 1.2)
    crowd = max(load - replicas, 0.0)
    return signals_at(
        now_s,
        replicas - pending,
        replicas_pending=pending,
        requests_per_second=3.0 * load * noise,
        ttft_p95_ms=120.0 + 900.0 * crowd,
        slow_share=min(crowd / 10.0, 1.0),
        utilization=min(load / max(replicas, 1), 1.0),
        in_flight=8.0 * load * noise,
        waiting=16.0 * crowd,
        prefill_tokens_per_s=3000.0 * load * noise,
        output_tokens_per_s=330.0 * load * noise,
    )


@pytest.mark.parametrize("name", POLICY_NAMES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_no_made_hour_moves_a_policy_out_of_its_limits_or_down_without_data(
    name: str, seed: int
) -> None:
    play(name, seed, HOURS_A_RUN)


def test_a_fixed_fleet_is_not_cut_down_to_its_size_without_data() -> None:
    """Found by hypothesis: a rule that needs no signals went down when an outage came first."""
    policy = make_policy("fixed", bounds=BOUNDS, replicas=2)
    blind = changed(signals_at(0.0, 4), dict.fromkeys(NUMBERS, math.nan))
    assert decide(policy, make_state("fixed"), blind, 0.0)[0].direction is Direction.HOLD
    assert decide(policy, make_state("fixed"), signals_at(0.0, 4), 0.0)[0].replicas == 2
    few = changed(signals_at(0.0, 1), dict.fromkeys(NUMBERS, math.nan))
    assert decide(policy, make_state("fixed"), few, 0.0)[0].direction is Direction.UP


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_two_thousand_made_hours_of_the_adaptive_policy(seed: int) -> None:
    play("adaptive", seed, HOURS_A_RUN)


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_hundred_thousand_made_hours_of_the_adaptive_policy(seed: int) -> None:
    play("adaptive", seed, HOURS_A_RUN)


def test_the_made_hours_do_scale_down() -> None:
    """The control: with no scale-down in them the hours would prove nothing."""
    assert sum(play("adaptive", seed, HOURS_A_RUN) for seed in range(3)) > 0


def test_a_decider_that_takes_missing_for_nought_is_caught() -> None:
    """The other control: such an outage is a quiet hour, and the region goes down in it."""
    with pytest.raises(AssertionError, match="'adaptive'"):  # the assertion about believing
        play("adaptive", 0, HOURS_A_RUN, trusting)
