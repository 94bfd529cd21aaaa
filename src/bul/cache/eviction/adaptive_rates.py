"""Reuse rates: a hazard per age, touch class and gap class, times a multiplier per factor.

It refuses to trust few counts: each estimate is shrunk to the coarser one before it, by as many
pseudo-observations as its name says.

hazard(b | x) = h[gap class, touch class, b] x product over factors f of m_f[x_f]
h is a Kaplan-Meier hazard (events / at risk) in age bins, shrunk touch class -> all ->
HAZARD_PRIOR.
m is fitted by backfitting, one sweep a fit and never from the start again: m_f[v] = (reuses with
f = v) / (reuses that the others expect there), the maximum likelihood of a Poisson model with the
other multipliers fixed (D. Cox, "Regression models and life-tables", 1972, with a baseline in
steps). It learns fast from little and cannot see how factors act together; the net can.
"""

from __future__ import annotations

import numpy as np

from bul.cache.eviction.adaptive_ages import AGE_BINS, Floats, Ints
from bul.cache.eviction.adaptive_log import FACTOR_STARTS, Observations
from bul.cache.eviction.adaptive_request import (
    FACTOR_SIZES,
    GAP_CLASSES,
    TOUCH_CLASSES,
    Described,
)

__all__ = ["ReuseRates"]

HAZARD_PRIOR = 0.02
HAZARD_MAX = 0.9
HAZARD_SHRINK = 50.0
FACTOR_SHRINK = 20.0
LOG_MULTIPLIER_MAX = 4.0

_SHAPE = (GAP_CLASSES, TOUCH_CLASSES, AGE_BINS)
_STARTS = np.array(FACTOR_STARTS)
_CELLS = GAP_CLASSES * TOUCH_CLASSES * AGE_BINS


class ReuseRates:
    """The multiplicative model."""

    def __init__(self) -> None:
        self._log_multipliers = np.zeros(sum(FACTOR_SIZES))
        self._log_hazards = np.full(_SHAPE, np.log(HAZARD_PRIOR))

    def log_hazards(self, described: Described, touches: Ints) -> Floats:
        """Logarithm of P(reuse in the bin | not before) of blocks, [n, AGE_BINS]; as the net's."""
        scores = self._log_multipliers[described.factors + _STARTS].sum(axis=1)
        scores = np.clip(scores, -LOG_MULTIPLIER_MAX, LOG_MULTIPLIER_MAX)
        rate = np.exp(self._log_hazards[described.gaps, touches] + scores[:, None])
        hazards: Floats = np.log(-np.expm1(-rate))
        return hazards

    def fit(self, seen: Observations) -> None:
        """One sweep over `seen`: the baseline given the multipliers, then each factor in turn."""
        scores = self._log_multipliers[seen.factors].sum(axis=1)
        groups = seen.gaps * TOUCH_CLASSES + seen.touches
        hazards = self._fit_baseline(seen, groups, scores)
        self._fit_factors(seen, _expected(seen, groups, hazards), scores)

    def _fit_baseline(self, seen: Observations, groups: Ints, scores: Floats) -> Floats:
        cells = groups * AGE_BINS + seen.bins
        weights = np.exp(np.clip(scores, -LOG_MULTIPLIER_MAX, LOG_MULTIPLIER_MAX))
        open_ = ~seen.reused
        events = np.bincount(cells[seen.reused], minlength=_CELLS).reshape(_SHAPE)
        ended = np.bincount(cells, weights, _CELLS).reshape(_SHAPE)
        censored = np.bincount(cells[open_], weights[open_], _CELLS).reshape(_SHAPE)
        # At risk in a bin: all that end in it or later; one still open in it was there for half.
        at_risk = np.flip(np.cumsum(np.flip(ended, 2), 2), 2) - 0.5 * censored
        k = HAZARD_SHRINK
        overall = (events.sum((0, 1)) + k * HAZARD_PRIOR) / (at_risk.sum((0, 1)) + k)
        by_touches = (events.sum(0) + k * overall) / (at_risk.sum(0) + k)
        hazards: Floats = np.minimum((events + k * by_touches) / (at_risk + k), HAZARD_MAX)
        self._log_hazards = np.log(hazards)
        return hazards

    def _fit_factors(self, seen: Observations, expected: Floats, scores: Floats) -> None:
        reused = seen.reused.astype(np.float64)
        for number, (start, size) in enumerate(zip(FACTOR_STARTS, FACTOR_SIZES, strict=True)):
            values = seen.factors[:, number] - start
            current = self._log_multipliers[start : start + size]
            others = np.exp(np.clip(scores - current[values], -5.0, 5.0))
            due = np.bincount(values, expected * others, size)
            found = np.bincount(values, reused, size)
            fitted = np.log((found + FACTOR_SHRINK) / (due + FACTOR_SHRINK))
            scores = scores + (fitted - current)[values]
            self._log_multipliers[start : start + size] = fitted


def _expected(seen: Observations, groups: Ints, hazards: Floats) -> Floats:
    """Reuses that the baseline alone expects of each record up to its end, [n]."""
    until = np.zeros((GAP_CLASSES * TOUCH_CLASSES, AGE_BINS + 1))
    np.cumsum(hazards.reshape(-1, AGE_BINS), axis=1, out=until[:, 1:])
    after, before = until[groups, seen.bins + 1], until[groups, seen.bins]
    expected: Floats = np.where(seen.reused, after, 0.5 * (before + after))
    return expected
