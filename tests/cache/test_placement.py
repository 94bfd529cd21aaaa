"""The break-even gate: numbers in, verdicts out."""

from __future__ import annotations

import pytest

from bul.cache.placement import EXPLORE_EVERY, BreakEven, LoadCost, PrefillRate, judge


@pytest.mark.parametrize(
    ("load_s", "compute_s", "refusals", "load"),
    [
        (None, 1.0, 0, True),
        (1.0, None, 0, True),
        (1.0, 1.0, 0, True),
        (1.001, 1.0, 0, False),
        (0.0, 0.0, 0, True),
        (9.0, 1.0, EXPLORE_EVERY - 2, False),
        (9.0, 1.0, EXPLORE_EVERY - 1, True),
    ],
)
def test_a_load_goes_if_it_does_not_lose(
    load_s: float | None, compute_s: float | None, refusals: int, *, load: bool
) -> None:
    assert judge(load_s, compute_s, refusals).load is load


def test_cost_is_fitted_as_latency_and_bandwidth() -> None:
    cost = LoadCost()
    for size in (1_000_000, 2_000_000, 8_000_000, 4_000_000):
        cost.observe(size, 0.010 + size / 1e9)
    assert cost.seconds(6_000_000) == pytest.approx(0.016)
    assert cost.seconds(0) == pytest.approx(0.010)


def test_one_size_alone_is_scaled_in_proportion() -> None:
    cost = LoadCost()
    cost.observe(1000, 0.5)
    cost.observe(1000, 0.5)
    assert cost.seconds(2000) == pytest.approx(1.0)


def test_noise_never_makes_a_latency_or_a_bandwidth_negative() -> None:
    cost = LoadCost()
    for size, seconds in ((1000, 0.9), (2000, 0.5), (3000, 0.1)):
        cost.observe(size, seconds)
    assert cost.seconds(10_000) == pytest.approx(0.5, rel=0.05)
    steep = LoadCost()
    for size, seconds in ((1000, 0.0), (2000, 0.0), (3000, 0.9)):
        steep.observe(size, seconds)
    latency = steep.seconds(0)
    assert latency is not None
    assert latency >= 0.0


def test_what_is_old_is_forgotten() -> None:
    cost, rate = LoadCost(), PrefillRate()
    for _ in range(500):
        cost.observe(1000, 10.0)
        rate.observe(100, 10.0)
    for _ in range(500):
        cost.observe(1000, 0.1)
        rate.observe(100, 0.1)
    assert cost.seconds(1000) == pytest.approx(0.1, rel=0.1)
    assert rate.seconds(1000) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -1.0)])
def test_nonsense_is_not_measured(tokens: int, seconds: float) -> None:
    rate = PrefillRate()
    rate.observe(tokens, seconds)
    assert rate.tokens_per_s is None
    assert rate.seconds(1) is None


def test_the_gate_explores_once_in_a_while() -> None:
    prefill = PrefillRate()
    prefill.observe(1000, 0.001)
    gate = BreakEven(prefill)
    gate.observe(1_000_000, 1.0)
    verdicts = [gate.ask(1_000_000, 64).load for _ in range(2 * EXPLORE_EVERY)]
    assert [i for i, load in enumerate(verdicts) if load] == [31, 63]
    assert gate.refused_total == 2 * EXPLORE_EVERY - 2


def test_a_gate_that_is_off_lets_everything_through() -> None:
    prefill = PrefillRate()
    prefill.observe(1000, 0.001)
    gate = BreakEven(prefill, enabled=False)
    gate.observe(1, 100.0)
    assert gate.ask(1, 1).load
