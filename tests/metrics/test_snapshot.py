import pytest

from bul.metrics.snapshot import (
    SAMPLES_MAX,
    SIGNAL_NAMES,
    Finished,
    Gauges,
    Window,
    quantile,
    scaling_metrics,
)


def window(*samples: Finished, started_s: float = 0.0) -> Window:
    found = Window(started_s=started_s, window_s=60.0)
    for sample in samples:
        found.add(sample)
    return found


def done(at_s: float, latency_s: float | None = 0.1, *, failed: bool = False) -> Finished:
    return Finished(
        at_s=at_s, failed=failed, latency_s=latency_s, prompt_tokens=100, cached_tokens=25
    )


def test_without_a_request_rates_are_zero_and_the_rest_is_no_data() -> None:
    found = scaling_metrics(window(), Gauges(), 30.0)
    assert tuple(found) == SIGNAL_NAMES
    assert found["requests_per_second"] == 0.0
    assert [found[name] for name in SIGNAL_NAMES[1:]] == [None] * 6


def test_in_the_first_second_there_is_no_rate() -> None:
    assert scaling_metrics(window(done(0.5)), Gauges(), 0.9)["requests_per_second"] is None
    assert scaling_metrics(window(done(0.5)), Gauges(), 1.0)["requests_per_second"] == 1.0


def test_samples_leave_at_the_window_s_edge() -> None:
    seen = window(done(10.0), done(70.0))
    assert scaling_metrics(seen, Gauges(), 69.9)["requests_per_second"] == pytest.approx(2 / 60)
    assert scaling_metrics(seen, Gauges(), 70.0)["requests_per_second"] == pytest.approx(1 / 60)


def test_the_seven_signals() -> None:
    seen = window(*(done(float(at), at / 100) for at in range(1, 21)), done(21, None, failed=True))
    gauges = Gauges(cpu_utilization=0.5, memory_utilization=0.25, active_connections=3)
    found = scaling_metrics(seen, gauges, 42.0)
    assert found["requests_per_second"] == 0.5
    assert found["p95_latency"] == pytest.approx(190.0)
    assert found["cache_hit_rate"] == 0.25
    assert found["error_rate"] == pytest.approx(1 / 21)
    assert (found["cpu_utilization"], found["memory_utilization"]) == (0.5, 0.25)
    assert found["active_connections"] == 3


def test_a_rate_stays_right_when_samples_are_dropped() -> None:
    per_second = 1000
    seen = window(*(done(number / per_second) for number in range(4 * SAMPLES_MAX)))
    now_s = 4 * SAMPLES_MAX / per_second
    found = scaling_metrics(seen, Gauges(), now_s)["requests_per_second"]
    assert found == pytest.approx(per_second, rel=0.01)


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([], 0.95, None),
        ([7.0], 0.01, 7.0),
        ([7.0], 1.0, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        (list(range(1, 101)), 0.95, 95),
        (list(range(1, 21)), 0.95, 19),
        (list(range(1, 20)), 0.95, 19),
    ],
)
def test_a_quantile_is_a_value_that_was_seen(
    values: list[float], q: float, expected: float | None
) -> None:
    assert quantile(values, q) == expected
