"""When a dead replica is started again, decided without time passing."""

from __future__ import annotations

import pytest

from bul.scaling.drivers.restarts import Restart, RestartLimits, Restarts, after_exit

LIMITS = RestartLimits()


def lives(count: int, *, exit_code: int = -9, ready_for_s: float | None = 1.0) -> list[Restart]:
    state, found = Restarts(), []
    for _ in range(count):
        restart, state = after_exit(LIMITS, state, exit_code=exit_code, ready_for_s=ready_for_s)
        found.append(restart)
    return found


def test_waits_double_and_then_become_a_named_crash_loop() -> None:
    waits = [restart.wait_s for restart in lives(6)]
    assert waits == [0.2, 0.4, 0.8, 1.6, 30.0, 30.0]


def test_the_fifth_short_life_is_a_crash_loop_and_the_fourth_is_not() -> None:
    found = lives(5)
    assert [restart.state for restart in found] == ["pending"] * 4 + ["failed"]
    assert "crash loop, 5 lives" in found[4].reason
    assert "crash loop" not in found[3].reason


@pytest.mark.parametrize(("ready_for_s", "crashes"), [(9.999, 5), (10.0, 1), (10.001, 1)])
def test_a_life_of_ten_ready_seconds_is_a_good_one(ready_for_s: float, crashes: int) -> None:
    _, state = after_exit(LIMITS, Restarts(crashes=4), exit_code=-9, ready_for_s=ready_for_s)
    assert state.crashes == crashes


def test_wrong_settings_are_never_tried_again() -> None:
    (restart,) = lives(1, exit_code=2, ready_for_s=None)
    assert restart.wait_s is None
    assert restart.state == "failed"


def test_exit_code_two_after_being_ready_is_an_ordinary_death() -> None:
    (restart,) = lives(1, exit_code=2, ready_for_s=1.0)
    assert restart.wait_s == 0.2


@pytest.mark.parametrize(("exit_code", "said"), [(-9, "signal 9"), (1, "exit code 1")])
def test_the_reason_says_how_it_died(exit_code: int, said: str) -> None:
    (restart,) = lives(1, exit_code=exit_code)
    assert said in restart.reason
