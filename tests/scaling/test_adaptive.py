"""The adaptive policy: forecasts, holds, learns its margin, and says when scaling cannot help."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import msgspec
import pytest

from bul.scaling.adaptive import CREST_S, Adaptive, AdaptiveState, Capacity
from bul.scaling.bounds import Bounds
from bul.scaling.decide import decide
from bul.scaling.decision import Decision, Direction
from bul.scaling.margin import AIM, KNEE, Margin
from bul.testing.signals import signals_at

CAPACITY = Capacity(prefill_tokens_per_s=15_000.0, output_tokens_per_s=390.0, slots=16)
WIDE = Bounds(min_replicas=1, max_replicas=60)
TICK_S = 15.0


def policy(**settings: Any) -> Adaptive:
    return Adaptive(**{"bounds": WIDE, "capacity": CAPACITY, **settings})


class Fleet:
    """Ticks a policy and does at once what it decides, with no cold start."""

    def __init__(self, rule: Adaptive, replicas: int = 4) -> None:
        self.rule = rule
        self.state = AdaptiveState()
        self.replicas = replicas
        self.now_s = 0.0
        self.steps: list[tuple[float, Decision]] = []

    def tick(self, work: float, **changed: Any) -> Decision:
        """One tick in which the work of `work` replicas arrives."""
        self.now_s += TICK_S
        values = {
            "output_tokens_per_s": work * 390.0,
            "prefill_tokens_per_s": 0.0,
            "slow_share": AIM * self.rule.violation_max,
            "in_flight": work * 8.0,
        } | changed
        signals = signals_at(self.now_s, self.replicas, **values)
        decision, self.state = decide(self.rule, self.state, signals, self.now_s)
        if decision.direction is not Direction.HOLD:
            self.steps.append((self.now_s, decision))
        self.replicas = decision.replicas
        return decision

    def settle(self, work: float, ticks: int = 200, **changed: Any) -> int:
        for _ in range(ticks):
            self.tick(work, **changed)
        return self.replicas


def test_more_work_wants_more_replicas_in_one_step() -> None:
    fleet = Fleet(policy())
    before = fleet.settle(4.0)
    # Requests double at once; the length of replies is known from before.
    decision = fleet.tick(16.0, requests_per_second=40.0)
    assert decision.direction is Direction.UP
    assert decision.replicas >= before + 4
    assert "work of" in decision.reason


def test_it_comes_down_only_after_the_hold_and_without_turning() -> None:
    fleet = Fleet(policy(cold_start_s=120.0))
    high = fleet.settle(12.0)
    quiet_s = fleet.now_s
    low = fleet.settle(3.0)
    downs = [
        (at_s, d.replicas)
        for at_s, d in fleet.steps
        if at_s > quiet_s and d.direction is Direction.DOWN
    ]
    assert downs[0][0] - quiet_s >= fleet.rule.hold_s - 2 * TICK_S
    assert low < high - 4
    assert [replicas for _, replicas in downs] == sorted({n for _, n in downs}, reverse=True)
    assert not [d for at_s, d in fleet.steps if at_s > downs[0][0] and d.direction is Direction.UP]


def test_the_fleet_that_it_finds_is_kept_for_a_hold() -> None:
    """One quiet first tick says nothing: ten replicas were wanted by somebody."""
    fleet = Fleet(policy(), replicas=10)
    ticks = int(fleet.rule.hold_s // TICK_S)
    assert fleet.settle(1.0, ticks=ticks) == 10
    assert fleet.settle(1.0, ticks=10) < 10


def test_a_longer_cold_start_waits_longer_before_it_comes_down() -> None:
    assert policy(cold_start_s=30.0).hold_s < policy(cold_start_s=300.0).hold_s


def test_pending_replicas_count_and_are_not_asked_for_twice() -> None:
    fleet = Fleet(policy())
    fleet.settle(4.0)
    wish = fleet.tick(16.0, requests_per_second=40.0).replicas
    signals = signals_at(
        fleet.now_s + TICK_S,
        4,
        replicas_pending=wish - 4,
        requests_per_second=10.0,
        output_tokens_per_s=8.0 * 390.0,
        prefill_tokens_per_s=0.0,
        waiting=500.0,
    )
    decision, _ = decide(fleet.rule, fleet.state, signals, fleet.now_s + TICK_S)
    assert decision.direction is Direction.HOLD


def test_a_standing_queue_adds_replicas_that_the_forecast_did_not_see() -> None:
    fleet = Fleet(policy())
    before = fleet.settle(1.0)
    assert fleet.tick(1.0, waiting=16.0 * before).replicas == before
    assert fleet.tick(1.0, waiting=16.0 * before + 1.0).replicas > before


def means_after(ticks: int, **changed: Any) -> tuple[float, float]:
    """Of the work that a fleet sees: settled at four replicas' work, and after the change."""
    fleet = Fleet(policy())
    fleet.settle(4.0)
    calm = fleet.state.mean
    fleet.settle(4.0, ticks=ticks, **changed)
    return calm, fleet.state.mean


def test_what_is_under_way_tells_of_work_before_the_replies_end() -> None:
    calm, crowded = means_after(3, in_flight=48.0)
    assert crowded > 1.1 * calm
    calm, unknown = means_after(3, in_flight=None)
    assert unknown == pytest.approx(calm)


def test_a_queue_for_a_cold_start_says_at_most_twice_as_much() -> None:
    _, twice = means_after(3, in_flight=90.0)
    _, flood = means_after(3, in_flight=1e9)
    assert flood == pytest.approx(twice, rel=0.1)


@pytest.mark.parametrize(("rate", "least", "most"), [(15.0, 0.4, 0.6), (100.0, 0.75, 1.0)])
def test_a_jump_of_what_arrives_counts_before_it_is_under_way(
    rate: float, least: float, most: float
) -> None:
    """Up to twice the usual half of it is believed; what lies beyond, in full."""
    calm, seen = means_after(1, requests_per_second=rate, in_flight=32.0)
    _, alone = means_after(1, requests_per_second=rate, in_flight=None)
    assert least < (seen - calm) / (alone - calm) < most


def test_what_stays_under_way_becomes_usual() -> None:
    """The control: a ratio to its own mean, so a lasting difference in scale says nothing."""
    calm, later = means_after(400, in_flight=48.0)
    assert later == pytest.approx(calm, rel=0.01)


def test_the_margin_grows_while_too_many_are_slow_and_shrinks_while_too_few() -> None:
    rising, falling = Fleet(policy()), Fleet(policy())
    rising.settle(4.0, slow_share=0.05)
    falling.settle(4.0, slow_share=0.0)
    assert rising.state.margin.value > policy().margin_start > falling.state.margin.value
    held = Fleet(policy(violation_max=0.05))
    held.settle(4.0, slow_share=AIM * 0.05)
    assert held.state.margin.value == pytest.approx(held.rule.margin_start)


def test_the_margin_stands_still_when_the_target_cannot_be_met() -> None:
    impossible = Fleet(policy(target_ms=250.0))
    calm = Fleet(policy(target_ms=250.0)).settle(4.0)
    assert impossible.settle(4.0, slow_share=1.0, ttft_idle_ms=345.0) == calm
    assert impossible.state.margin.value == impossible.rule.margin_start


def test_a_margin_that_the_fleet_cannot_follow_does_not_wind_up() -> None:
    """Days at `max_replicas` say no more than hours did, and are as soon forgotten."""
    narrow = policy(bounds=Bounds(min_replicas=1, max_replicas=12))
    short, long = Fleet(narrow), Fleet(narrow)
    for fleet, hours in ((short, 4), (long, 48)):
        assert fleet.settle(10.0, ticks=hours * 240, slow_share=1.0) == 12
    assert 12.0 < long.state.peaks[0][1] < 13.0  # the need stands where the bounds end
    calm = [fleet.settle(2.0, ticks=12 * 240, slow_share=0.0) for fleet in (short, long)]
    assert calm[1] <= calm[0] + 2
    assert calm[1] < 8


def test_a_high_margin_keeps_a_share_of_the_last_crest_and_forgets_it_with_it() -> None:
    fleet = Fleet(policy())
    fleet.settle(4.0)
    fleet.state = msgspec.structs.replace(fleet.state, margin=Margin(value=2.5 * KNEE))
    fleet.settle(12.0, ticks=40)
    soon, late = (fleet.settle(4.0, ticks=ticks) for ticks in (240, 2 * int(CREST_S / TICK_S)))
    assert soon >= late + 5


def test_up_to_the_knee_no_crest_counts() -> None:
    """The control: the asked share is kept, and the fleet comes down after the hold."""
    fleet = Fleet(policy())
    fleet.settle(12.0, ticks=40)
    soon, late = (fleet.settle(4.0, ticks=ticks) for ticks in (240, 2 * int(CREST_S / TICK_S)))
    assert fleet.state.margin.value < KNEE
    assert soon <= late + 1


def test_even_traffic_leaves_the_margin_something_to_work_with() -> None:
    """Noise of nought times any margin is nought: 0.9 of the work would be all there is."""
    even = Fleet(policy(), replicas=20)
    assert even.settle(20.0, ticks=3000, slow_share=0.5) > 20


@pytest.mark.parametrize(("idle_ms", "alerts"), [(250.0, False), (250.1, True), (345.0, True)])
def test_a_target_below_the_idle_latency_is_an_alert(idle_ms: float, alerts: bool) -> None:
    decision = Fleet(policy(target_ms=250.0)).tick(4.0, ttft_idle_ms=idle_ms)
    assert bool(decision.alert) is alerts
    assert ("of the 250 ms asked" in decision.alert) is alerts


def test_the_guides_cooldowns_are_options() -> None:
    slow = Fleet(policy(scale_up_cooldown_s=300.0, scale_down_cooldown_s=600.0))
    slow.settle(2.0)
    for work in range(3, 20):
        slow.settle(float(work), ticks=4)
    slow.settle(1.0)
    ups = [at_s for at_s, d in slow.steps if d.direction is Direction.UP]
    gaps = [b - a for a, b in itertools.pairwise(ups)]
    assert min(gaps) >= 300.0
    assert len(ups) > 2


def test_after_an_outage_the_wait_before_a_scale_down_begins_anew() -> None:
    fleet = Fleet(policy())
    high = fleet.settle(12.0)
    fleet.now_s += 3600.0
    assert fleet.settle(1.0, ticks=10) == high
    assert fleet.settle(1.0) < high


def test_a_clock_that_went_back_moves_nothing_down() -> None:
    fleet = Fleet(policy())
    high = fleet.settle(12.0)
    fleet.now_s -= 5000.0
    assert fleet.settle(1.0, ticks=10) == high
    assert fleet.settle(1.0) < high


def test_without_a_measured_capacity_requests_in_flight_stand_for_work() -> None:
    fleet = Fleet(policy(capacity=None, slots=8))
    low = fleet.settle(0.0, in_flight=16.0)
    assert fleet.settle(0.0, in_flight=80.0) > low + 4


def turns_of(rule: Adaptive, hours: int) -> list[float]:
    """When it turned round, on a sine of four hours with +-20 % of noise."""
    fleet, rng = Fleet(rule), random.Random(7)
    for tick in range(hours * 240):
        wave = 8.0 + 4.0 * math.sin(tick / 240 / 24 * 2 * math.pi * 6)
        fleet.tick(wave * rng.uniform(0.8, 1.2))
    pairs = itertools.pairwise(fleet.steps)
    return [b[0] for a, b in pairs if a[1].direction is not b[1].direction]


def most_in_ten_minutes(turns: list[float]) -> int:
    return max(sum(at_s - 600.0 < other <= at_s for other in turns) for at_s in turns)


def test_a_noisy_sine_reverses_at_most_once_in_ten_minutes() -> None:
    for cold_start_s in (30.0, 120.0, 300.0):
        assert most_in_ten_minutes(turns_of(policy(cold_start_s=cold_start_s), 48)) == 1


def test_without_the_hold_it_turns_all_the_time() -> None:
    """The control."""
    restless = policy(cold_start_s=0.0, hold_base_s=0.0)
    assert most_in_ten_minutes(turns_of(restless, 4)) > 3
