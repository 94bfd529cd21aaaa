"""The breaker, at its boundaries."""

from __future__ import annotations

from bul.cache.breaker import Breaker


def failed(times: int, now_s: float = 0.0) -> Breaker:
    breaker = Breaker(failures_max=3, pause_s=1.0, pause_s_max=4.0)
    for _ in range(times):
        breaker.record(ok=False, now_s=now_s)
    return breaker


def test_two_failures_leave_it_closed_and_three_open_it() -> None:
    assert failed(2).allow(0.0)
    assert not failed(2).is_open
    assert not failed(3).allow(0.0)
    assert failed(3).opened_total == 1


def test_only_failures_in_a_row_count() -> None:
    breaker = failed(2)
    breaker.record(ok=True, now_s=0.0)
    breaker.record(ok=False, now_s=0.0)
    breaker.record(ok=False, now_s=0.0)
    assert not breaker.is_open


def test_one_probe_goes_exactly_when_the_pause_is_over() -> None:
    breaker = failed(3)
    assert not breaker.allow(0.999)
    assert breaker.allow(1.0)
    assert not breaker.allow(1.0)  # one probe, not two
    assert not breaker.allow(1.999)
    assert breaker.allow(2.0)  # the first probe's outcome was never told


def test_a_good_probe_closes_it_and_a_bad_one_doubles_the_pause_up_to_its_end() -> None:
    breaker = failed(3)
    for at_s, pause_s in ((1.0, 2.0), (3.0, 4.0), (7.0, 4.0)):
        assert breaker.allow(at_s)
        breaker.record(ok=False, now_s=at_s)
        assert not breaker.allow(at_s + pause_s - 0.001)
    assert breaker.allow(11.0)
    breaker.record(ok=True, now_s=11.0)
    assert not breaker.is_open
    for _ in range(3):
        breaker.record(ok=False, now_s=20.0)
    assert breaker.allow(21.0)  # the pause starts small again
