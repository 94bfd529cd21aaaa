"""Percentiles, intervals and fits: pure functions over numbers.

Refuses to make up a figure: of no values every statistic is nan, of one value an interval is nan.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "bootstrap_interval", "fit_powers", "fit_terms", "percentile", "t_interval"]

Floats = npt.NDArray[np.float64]

# Student's t at 0.975 for 1 to 30 degrees of freedom; above that the series below is exact to 1e-4.
_T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_Z_975 = 1.959964
RESAMPLES = 500
RESAMPLED_VALUES_MAX = 5_000
"""A bootstrap of more would take seconds and say the same; it takes every n-th value then."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """95 % confidence: [low, high] around `value`."""

    value: float
    low: float
    high: float


def percentile(values: Sequence[float] | Floats, share: float) -> float:
    """The nearest-rank percentile, `share` in (0, 1]: a value that was measured; nan of none."""
    if len(values) == 0:
        return math.nan
    rank = max(math.ceil(share * len(values) - 1e-9), 1) - 1
    return float(np.partition(np.asarray(values, dtype=np.float64), rank)[rank])


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of independent repeats, by Student's t; nan bounds for fewer than two."""
    if len(values) == 0:
        return Interval(value=math.nan, low=math.nan, high=math.nan)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(value=mean, low=math.nan, high=math.nan)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = _t_975(len(values) - 1) * error
    return Interval(value=mean, low=mean - reach, high=mean + reach)


def _t_975(degrees: int) -> float:
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def bootstrap_interval(values: Sequence[float] | Floats, share: float, *, seed: int) -> Interval:
    """A percentile of one run, resampled; it assumes independent requests, which queues bend."""
    value = percentile(values, share)
    if len(values) < 2:
        return Interval(value=value, low=math.nan, high=math.nan)
    step = -(-len(values) // RESAMPLED_VALUES_MAX)
    kept = np.sort(np.asarray(values, dtype=np.float64))[step // 2 :: step]
    rng = np.random.default_rng(seed)
    found = [percentile(rng.choice(kept, len(kept)), share) for _ in range(RESAMPLES)]
    return Interval(value=value, low=percentile(found, 0.025), high=percentile(found, 0.975))


def fit_powers(
    points: Sequence[tuple[float, float]], powers: Sequence[int]
) -> tuple[list[float], float]:
    """Coefficients of x**power for points (x, y > 0), none negative; and the RMS error.

    Of least relative squares: 10 % off is as bad at a small y as at a large one. Tries which
    coefficients are nought, the simplest first: `powers` rise, and one above 1 comes only beside
    the one below it. nan if no fit has enough different x.
    """
    terms = [[x**power for power in powers] for x, _ in points]
    allowed = [
        used
        for used in sorted(_subsets(len(powers)), key=lambda used: sum(powers[k] for k in used))
        if all(powers[k] < 2 or powers[k] - 1 in [powers[j] for j in used] for k in used)
    ]
    return _fit(terms, [y for _, y in points], allowed)


def fit_terms(
    terms: Sequence[Sequence[float]], values: Sequence[float]
) -> tuple[list[float], float]:
    """What each term costs where a value (> 0) is the sum of its point's `terms` times their costs.

    Of least relative squares and none negative, as `fit_powers`; the fewest terms that do.
    """
    return _fit(terms, values, list(_subsets(len(terms[0]))))


def _fit(
    terms: Sequence[Sequence[float]], values: Sequence[float], allowed: Sequence[tuple[int, ...]]
) -> tuple[list[float], float]:
    """The best of the `allowed` choices of terms; the first of equally good ones."""
    shares = np.asarray(terms, dtype=np.float64) / np.asarray(values, dtype=np.float64)[:, None]
    best, best_error = [math.nan] * shares.shape[1], math.nan
    for used in allowed:
        matrix = shares[:, used]
        if np.linalg.matrix_rank(matrix) < len(used):
            continue
        found, *_ = np.linalg.lstsq(matrix, np.ones(len(matrix)), rcond=None)
        error = float(np.sqrt(np.mean((matrix @ found - 1) ** 2)))
        if (found >= 0).all() and not error > best_error - 1e-9:
            costs = dict(zip(used, found.tolist(), strict=True))
            best, best_error = [costs.get(k, 0.0) for k in range(len(best))], error
    return best, best_error


def _subsets(count: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, count + 1):
        yield from itertools.combinations(range(count), size)
