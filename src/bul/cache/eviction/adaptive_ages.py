"""Ages in half-octave bins, and the index that turns chances of reuse into a rank.

It refuses to know what a block is: rows of hazards come in, rows of indices go out.

The hazard of bin b is P(reused in b | not reused before b). The index of a block at age a is
    max over T of  P(reused before T | alive at a) / E[min(reuse, T) - a],
the best hits per second that its room can earn from now on: a Gittins index (J. Gittins, "Bandit
processes and dynamic allocation indices", 1979), for caches N. Beckmann and D. Sanchez use the same
ratio at T = the age of eviction (LHD, NSDI 2018). The hazard of this moment alone would be a trap:
nobody answers within a second, so it throws away the sessions that were just used.
Worked number: half of the sessions come back, all after exactly 60 s. At age 0 the index is
0.5 / 60 s; at age 50 s it is 0.5 / 10 s, and at age 61 s it is 0.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["AGE_BINS", "AGE_FIRST_S", "Floats", "Ints", "bins_of_ages", "reuse_index"]

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

AGE_BINS = 40
AGE_FIRST_S = 0.25
"""Bin 0 is [0, 0.35 s), bin b is [0.25 x 2^(b/2), 0.25 x 2^((b+1)/2)); the last begins at 51 h."""

_FIRST_LOG2 = math.log2(AGE_FIRST_S)
_EDGES = AGE_FIRST_S * 2.0 ** (np.arange(AGE_BINS + 1) / 2.0)
_EDGES[0] = 0.0
_WIDTHS = np.diff(_EDGES)
_LATER = np.triu(np.ones((AGE_BINS, AGE_BINS), dtype=bool))


def bins_of_ages(ages_s: Floats) -> Ints:
    """The bin of each age, shape kept."""
    position = 2.0 * (np.log2(np.maximum(ages_s, 1e-9)) - _FIRST_LOG2)
    return np.clip(np.floor(position), 0, AGE_BINS - 1).astype(np.int64)


def reuse_index(hazards: Floats) -> Floats32:
    """Hits per block and second at the start of each bin; hazards [rows, AGE_BINS] in [0, 1)."""
    rows = len(hazards)
    alive = np.ones((rows, AGE_BINS + 1))
    np.cumprod(1.0 - hazards, axis=1, out=alive[:, 1:])
    spent = np.zeros((rows, AGE_BINS + 1))
    np.cumsum(alive[:, :-1] * _WIDTHS * (1.0 - hazards / 2.0), axis=1, out=spent[:, 1:])
    gain = (alive[:, :-1, None] - alive[:, None, 1:]).astype(np.float32)
    cost = (spent[:, None, 1:] - spent[:, :-1, None]).astype(np.float32)
    ratio = np.zeros_like(gain)
    np.divide(gain, cost, out=ratio, where=_LATER & (cost > 0.0))
    best: Floats32 = ratio.max(axis=2)
    return best
