"""The margin: holds what is asked in the long run, and does not chase what no fleet can hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from bul.scaling.adaptive import Adaptive, AdaptiveState, Capacity
from bul.scaling.bounds import Bounds
from bul.scaling.decide import decide
from bul.scaling.decision import Decision
from bul.scaling.margin import AIM, MARGIN_MAX, MARGIN_MIN, Margin, has_room
from bul.testing.signals import signals_at

ASKED, TICK_S = 0.01, 15.0
DAY = int(86_400 / TICK_S)
RULE = Adaptive(
    bounds=Bounds(min_replicas=1, max_replicas=60),
    capacity=Capacity(prefill_tokens_per_s=15_000.0, output_tokens_per_s=390.0, slots=16),
)


def after(margin: Margin, slow: float, tick: int, *, room: bool = False) -> Margin:
    return margin.after(
        slow,
        ASKED,
        crowd=1.0,
        room=room,
        may_rise=True,
        age_s=tick * TICK_S,
        elapsed_s=TICK_S,
    )


def held(
    floor_at: Callable[[int], float], days: int = 8, *, looks: bool = True
) -> tuple[float, list[float]]:
    """The share that was slow, and the margins, of the second half. Every other tick has room, and
    only the floor is slow; in the others the margin decides how many are. looks: for room.
    """
    margin, slow, values = Margin(value=3.0), [], []
    for tick in range(days * DAY):
        room = tick % 2 == 0
        curable = 0.0 if room else 0.06 * math.exp(-margin.value / 2.0)
        slow.append(floor_at(tick) + curable)
        values.append(margin.value)
        margin = after(margin, slow[-1], tick, room=room and looks)
    half = len(slow) // 2
    return sum(slow[half:]) / half, values[half:]


@pytest.mark.parametrize("floor", [0.0, 0.002, 0.006])
def test_what_is_asked_is_held_however_much_of_it_no_fleet_can_help(floor: float) -> None:
    share, _ = held(lambda tick: floor)
    assert share == pytest.approx(AIM * ASKED, rel=0.05)


def test_hours_with_many_that_no_fleet_can_help_do_not_move_the_margin() -> None:
    """Six hours of 2 percent, eighteen of none: in the mean half of what is asked."""
    share, values = held(lambda tick: 0.02 * (tick % DAY < DAY // 4), days=12)
    assert share == pytest.approx(AIM * ASKED, rel=0.1)
    assert max(values) - min(values) < 1.1


def test_without_a_floor_they_do() -> None:
    """The control."""
    _, values = held(lambda tick: 0.02 * (tick % DAY < DAY // 4), days=12, looks=False)
    assert max(values) - min(values) > 1.4


def test_a_floor_above_what_is_asked_leaves_a_fifth_of_it_to_hold() -> None:
    share, _ = held(lambda tick: 0.03)
    assert share == pytest.approx(AIM * (0.03 + 0.2 * ASKED), rel=0.1)


def test_a_floor_is_forgotten_in_a_day_without_room() -> None:
    margin = Margin(value=3.0, floor=0.05, floor_usual=0.05)
    for tick in range(DAY):
        margin = after(margin, 0.0, tick)
    assert margin.floor < 0.02 * 0.05


def test_it_stays_within_its_bounds() -> None:
    high = low = Margin(value=3.0)
    for tick in range(DAY):
        high, low = after(high, 1.0, tick), after(low, 0.0, tick)
    assert high.value == MARGIN_MAX
    assert low.value == MARGIN_MIN


@pytest.mark.parametrize(
    ("work", "replicas", "room"),
    [(0.0, 0, False), (0.0, 1, True), (1.0, 3, False), (1.0, 4, True), (9.0, 16, False)],
)
def test_room_grows_with_the_root_of_the_work(work: float, replicas: int, room: bool) -> None:
    assert has_room(work, 0.2, replicas) is room
    assert has_room(work, 0.25, replicas) is room


@pytest.mark.parametrize(("noise2", "least"), [(0.0, 17), (0.25, 17), (0.36, 19), (1.0, 25)])
def test_bursts_take_more_room_up_to_twice(noise2: float, least: int) -> None:
    """9 of work: 9 + 2.5 * 3 = 16.5 replicas; 1.2 times the 7.5 make 18, and twice 24."""
    assert [has_room(9.0, noise2, replicas) for replicas in (least - 1, least)] == [False, True]
    assert has_room(9.0, 100.0, 25)


def play(days: int, *, hopeless: float, each: float = 8.0) -> tuple[int, Decision]:
    """The most replicas, and the last decision, of a fleet with the work of four replicas: below
    seven a tenth is slow, and `hopeless` of all on any number. each: requests under way per work.
    """
    state, replicas, most = AdaptiveState(), 4, 0
    for tick in range(1, days * DAY + 1):
        wave = 4.0 + 2.0 * math.sin(tick / 7.0)
        signals = signals_at(
            tick * TICK_S,
            replicas,
            output_tokens_per_s=wave * 390.0,
            prefill_tokens_per_s=0.0,
            slow_share=hopeless + 0.1 * (replicas < 7),
            in_flight=wave * each,
        )
        decision, state = decide(RULE, state, signals, tick * TICK_S)
        replicas = decision.replicas
        most = max(most, replicas)
    return most, decision


def test_slow_requests_that_no_fleet_can_help_are_an_alert_and_not_replicas() -> None:
    most, last = play(4, hopeless=0.03)
    assert most <= 12
    assert "of requests miss the 500 ms asked even with replicas to spare" in last.alert
    assert not play(4, hopeless=0.0)[1].alert


def test_where_there_never_seems_to_be_room_they_take_ever_more() -> None:
    """The control: what the policy did before, seen by ten times as many under way."""
    assert play(4, hopeless=0.03, each=80.0)[0] > 16


@pytest.mark.parametrize(("in_flight", "learnt"), [(400.0, False), (32.0, True)])
def test_a_queue_that_still_stands_is_no_floor(in_flight: float, learnt: bool) -> None:
    """After a cold start there are replicas to spare, and still everybody waits."""
    state = AdaptiveState()
    for tick in range(1, 20):
        signals = signals_at(
            tick * TICK_S,
            30,
            output_tokens_per_s=4.0 * 390.0,
            prefill_tokens_per_s=0.0,
            slow_share=1.0,
            in_flight=in_flight,
        )
        _, state = decide(RULE, state, signals, tick * TICK_S)
    assert (state.margin.floor > 0.0) is learnt
