"""Known values of the statistics."""

from __future__ import annotations

import math
import random

import pytest

from bul.bench.statistics import bootstrap_interval, fit_powers, fit_terms, percentile, t_interval


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.01, 1), (0.5, 50), (0.501, 51), (0.9, 90), (0.95, 95), (1.0, 100)]
)
def test_a_percentile_is_the_nearest_rank(share: float, wanted: float) -> None:
    values = [float(value) for value in range(1, 101)]
    random.Random(1).shuffle(values)
    assert percentile(values, share) == wanted


def test_no_values_have_no_percentile_and_no_interval() -> None:
    assert math.isnan(percentile([], 0.5))
    assert math.isnan(t_interval([]).value)
    assert math.isnan(t_interval([3.0]).low)
    assert math.isnan(bootstrap_interval([3.0], 0.5, seed=0).low)


def test_the_t_interval_of_a_textbook_sample() -> None:
    found = t_interval([4.0, 6.0, 8.0])  # mean 6, s 2, t(2) 4.3027, s/sqrt(3) 1.1547
    assert (found.value, found.low, found.high) == pytest.approx((6.0, 1.0317, 10.9683), abs=1e-4)


@pytest.mark.parametrize(("count", "t"), [(31, 2.0423), (32, 2.0395), (61, 2.0003), (121, 1.9799)])
def test_the_t_quantile_follows_the_tables_on_both_sides_of_the_seam(count: int, t: float) -> None:
    values = [-1.0, 1.0] * (count // 2) + [0.0] * (count % 2)
    found = t_interval(values)
    deviation = math.sqrt(sum(value * value for value in values) / (count - 1))
    assert found.high * math.sqrt(count) / deviation == pytest.approx(t, abs=2e-4)


def test_the_bootstrap_covers_the_median_and_repeats_with_its_seed() -> None:
    rng = random.Random(5)
    values = [rng.gauss(100, 10) for _ in range(400)]
    found = bootstrap_interval(values, 0.5, seed=1)
    assert found.low < 100 < found.high
    assert found.high - found.low < 6
    assert bootstrap_interval(values, 0.5, seed=1) == found


def test_powers_through_points_are_found_with_their_error() -> None:
    (base, each, grows), error = fit_powers(
        [(n, 3 + 2 * n + n * n) for n in (1, 2, 3, 9)], (0, 1, 2)
    )
    assert (base, each, grows) == pytest.approx((3, 2, 1))
    assert error == pytest.approx(0, abs=1e-9)


def test_no_cost_is_negative_and_a_fit_that_misses_says_by_how_much() -> None:
    (base, each), error = fit_powers([(1, 1.0), (2, 3.0)], (0, 1))
    assert base == 0
    assert 1.0 < each < 1.5
    assert error > 0.1
    assert math.isnan(fit_powers([(1, 2.0)], ())[1])


def test_terms_are_found_and_what_the_points_cannot_tell_apart_gets_one_of_them() -> None:
    terms = [(1.0, n, n * deep) for n, deep in ((1, 30), (2, 30), (4, 30), (2, 1000))]
    values = [0.02 * a + 0.003 * b + 1e-5 * c for a, b, c in terms]
    assert fit_terms(terms, values)[0] == pytest.approx((0.02, 0.003, 1e-5))
    shallow, error = fit_terms(terms[:3], values[:3])
    assert shallow == pytest.approx((0.02, 0.003 + 30e-5, 0.0))
    assert error == pytest.approx(0, abs=1e-9)
