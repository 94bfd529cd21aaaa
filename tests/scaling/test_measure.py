"""From counters to signals: what arrived counts, lives are told apart, gaps are not filled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest

from bul.metrics.exposition import ServiceMetrics
from bul.scaling.adaptive import Capacity
from bul.scaling.figures import ReplicaFigures, figures_of
from bul.scaling.measure import CapacityMeter, ColdStarts, Meter, RouterFigures

BOUNDS = (0.25, 0.5, 1.0, math.inf)
BASE = ReplicaFigures(
    started_s=1000.0,
    slots=4.0,
    running=0.0,
    waiting=0.0,
    queue_delay_s=0.0,
    prefill_tokens_per_s=8000.0,
    decode_tokens_per_s=200.0,
    finished=0.0,
    prompt_tokens=0.0,
    cached_tokens=0.0,
    output_tokens=0.0,
    ttft=tuple((bound, 0.0) for bound in BOUNDS),
)


def served(*counts: float, figures: ReplicaFigures = BASE, **changed: float) -> ReplicaFigures:
    """counts: answers in each bucket, not cumulative."""
    sums = [sum(counts[: at + 1]) for at in range(len(counts))]
    ttft = tuple(zip(BOUNDS, sums, strict=True))
    finished = changed.pop("finished", sums[-1])
    return dataclasses.replace(figures, ttft=ttft, finished=finished, **changed)


def router(arrivals: int, failed: int = 0, **changed: object) -> RouterFigures:
    values: dict[str, object] = {"in_flight": 0.0, "waiting": 0.0, "clients": 0} | changed
    return RouterFigures(arrivals=arrivals, failed=failed, **values)  # type: ignore[arg-type]  # by name


class Ticks:
    """A meter, and a clock that moves 15 s a tick."""

    def __init__(self) -> None:
        self.meter = Meter(0.5)
        self.now_s = 100.0

    def __call__(self, figures: RouterFigures, replicas: Mapping[str, ReplicaFigures]) -> Any:
        self.now_s += 15.0
        return self.meter.tick(self.now_s, 1000.0 + self.now_s, figures, replicas)


def test_the_first_tick_knows_nothing() -> None:
    assert Ticks()(router(100), {"a": BASE}) is None


def test_work_is_what_arrived_and_not_what_was_answered() -> None:
    ticks = Ticks()
    ticks(router(0), {"a": BASE})
    # 150 arrived, only 30 were answered: the region is five times too small.
    answered = served(30, 0, 0, 0, prompt_tokens=3000.0, cached_tokens=600.0, output_tokens=900.0)
    signals = ticks(router(150), {"a": answered})
    assert signals.requests_per_second == pytest.approx(10.0)
    assert signals.prefill_tokens_per_s == pytest.approx(10.0 * 80.0)
    assert signals.output_tokens_per_s == pytest.approx(10.0 * 30.0)
    assert signals.cache_hit_rate == pytest.approx(0.2)
    assert signals.slow_share == 0.0
    assert signals.ttft_idle_ms == pytest.approx(10.0)


def test_requests_whose_size_nobody_knows_are_no_data() -> None:
    ticks = Ticks()
    ticks(router(0), {"a": BASE})
    signals = ticks(router(15), {"a": BASE})
    assert signals.requests_per_second == pytest.approx(1.0)
    assert signals.prefill_tokens_per_s is None
    assert signals.output_tokens_per_s is None


def test_no_request_at_all_is_a_true_zero() -> None:
    ticks = Ticks()
    ticks(router(7), {"a": BASE})
    signals = ticks(router(7), {"a": BASE})
    values = (signals.requests_per_second, signals.prefill_tokens_per_s, signals.slow_share)
    assert values == (0.0, 0.0, 0.0)


def test_slow_ones_are_late_first_tokens_waits_in_line_and_those_turned_away() -> None:
    ticks = Ticks()
    ticks(router(0), {"a": BASE})
    signals = ticks(router(50, 10, waits_s=(0.4, 0.5, 0.6)), {"a": served(30, 0, 10, 0)})
    assert signals.slow_share == pytest.approx((10 + 1 + 10) / 50)
    assert signals.error_rate == pytest.approx(0.2)


def test_a_target_inside_a_bucket_takes_its_share() -> None:
    ticks = Ticks()
    ticks.meter.target_s = 0.75
    ticks(router(0), {"a": BASE})
    assert ticks(router(10), {"a": served(0, 0, 10, 0)}).slow_share == pytest.approx(0.5)


def test_a_replica_that_was_born_since_counts_from_nothing() -> None:
    ticks = Ticks()
    ticks(router(0), {"a": BASE})
    born = dataclasses.replace(BASE, started_s=1000.0 + ticks.now_s + 5.0)
    two = {"a": BASE, "b": served(10, 0, 0, 0, figures=born, output_tokens=50.0)}
    assert ticks(router(10), two).output_tokens_per_s == pytest.approx(5.0 * 10 / 15)


def test_a_replica_that_lived_before_it_was_seen_counts_from_its_first_sight() -> None:
    ticks = Ticks()
    ticks(router(0), {"a": BASE})
    old = served(1000, 0, 0, 0, output_tokens=1e6)
    assert ticks(router(10), {"a": BASE, "b": old}).output_tokens_per_s is None
    more = dataclasses.replace(old, finished=1010.0, output_tokens=1e6 + 100.0)
    signals = ticks(router(20), {"a": BASE, "b": more})
    assert signals.output_tokens_per_s == pytest.approx(10 * 10 / 15)


def test_a_new_life_at_the_same_address_is_not_a_step_backwards() -> None:
    ticks = Ticks()
    ticks(router(0), {"a": served(500, 0, 0, 0, output_tokens=5000.0)})
    again = dataclasses.replace(BASE, started_s=1000.0 + ticks.now_s + 3.0)
    signals = ticks(router(5), {"a": served(0, 5, 0, 0, figures=again, output_tokens=50.0)})
    assert signals.output_tokens_per_s == pytest.approx(10 * 5 / 15)
    assert signals.slow_share == 0.0


def test_sizes_are_remembered_over_a_quiet_hour() -> None:
    ticks = Ticks()
    ticks(router(0), {"a": BASE})
    busy = served(10, 0, 0, 0, output_tokens=100.0)
    ticks(router(10), {"a": busy})
    for _ in range(6):
        ticks(router(10), {"a": busy})
    assert ticks(router(40), {"a": busy}).output_tokens_per_s == pytest.approx(2.0 * 10.0)


def test_without_any_first_token_the_oldest_wait_is_the_latency() -> None:
    ticks = Ticks()
    stuck = dataclasses.replace(BASE, queue_delay_s=9.0)
    ticks(router(0), {"a": BASE})
    assert ticks(router(10), {"a": stuck}).ttft_p95_ms == pytest.approx(9000.0)


def test_the_p95_is_found_inside_its_bucket() -> None:
    ticks = Ticks()
    ticks(router(0), {"a": BASE})
    signals = ticks(router(100), {"a": served(50, 40, 10, 0)})
    assert signals.ttft_p95_ms == pytest.approx(750.0)


def test_busy_time_is_what_the_tokens_cost() -> None:
    ticks = Ticks()
    ticks(router(0), {"a": BASE})
    half = served(10, 0, 0, 0, prompt_tokens=12_000.0, output_tokens=1200.0)
    assert ticks(router(10), {"a": half}).utilization == pytest.approx(0.5)


def test_capacity_is_what_a_full_replica_was_seen_to_do() -> None:
    meter = CapacityMeter()
    idle = dataclasses.replace(BASE, decode_tokens_per_s=50.0)
    meter.add([idle])
    assert meter.capacity is None
    meter.add([dataclasses.replace(BASE, running=4.0, waiting=2.0), idle])
    assert meter.capacity == Capacity(
        prefill_tokens_per_s=8000.0, output_tokens_per_s=200.0, slots=4
    )


def test_until_then_the_expected_capacity_is_believed() -> None:
    expected = Capacity(prefill_tokens_per_s=1.0, output_tokens_per_s=2.0, slots=3)
    meter = CapacityMeter(expected)
    meter.add([dataclasses.replace(BASE, running=4.0, waiting=0.0)])
    assert meter.capacity == expected


def test_a_cold_start_lasts_until_the_router_sends_to_it() -> None:
    starts = ColdStarts(30.0)
    assert starts.seconds == 30.0
    starts.see(["b"], ["a"], 100.0)
    starts.see(["b"], ["a"], 107.0)
    starts.see([], ["a", "b"], 109.0)
    assert starts.seconds == 9.0
    starts.see(["c"], ["a", "b"], 200.0)
    starts.see([], ["a", "b"], 260.0)  # it never served: no start to learn from
    starts.see([], ["a", "b", "c"], 300.0)
    assert starts.seconds == 9.0


def metrics_page() -> str:
    gauges = {
        "slots": 4.0,
        "requests_running": 1.0,
        "requests_waiting": 2.0,
        "queue_delay_seconds": 0.5,
        "prefill_tokens_per_second": 8000.0,
        "decode_tokens_per_second": 200.0,
    }
    metrics = ServiceMetrics(gauges=lambda: gauges)
    metrics.first_text(0.3)
    metrics.generated(1.0, prompt_tokens=100, cached_tokens=64, output_tokens=10)
    return metrics.text().decode()


def test_a_replicas_own_page_is_read() -> None:
    figures = figures_of(metrics_page())
    assert (figures.slots, figures.running, figures.waiting) == (4.0, 1.0, 2.0)
    assert (figures.finished, figures.prompt_tokens, figures.cached_tokens) == (1.0, 100.0, 64.0)
    assert figures.started_s > 1e9
    assert figures.ttft[-1] == (math.inf, 1.0)
    assert dict(figures.ttft)[0.25] == 0.0


@pytest.mark.parametrize(
    "name", ["bul_slots", "process_start_time_seconds", "bul_time_to_first_token_seconds_bucket"]
)
def test_a_page_without_a_figure_is_refused(name: str) -> None:
    page = metrics_page()
    kept = [line for line in page.splitlines() if not line.startswith(name)]
    with pytest.raises(ValueError, match="missing"):
        figures_of("\n".join(kept))


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "many"])
def test_a_figure_that_is_no_number_is_refused(value: str) -> None:
    page = metrics_page().replace("bul_slots 4.0", f"bul_slots {value}")
    with pytest.raises(ValueError, match=r"number|float"):
        figures_of(page)
