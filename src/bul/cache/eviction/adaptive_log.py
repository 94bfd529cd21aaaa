"""What was seen of reuse: for each traced block, what it was, and when (or not yet) it came back.

It refuses to grow: a ring of RECORDS_MAX records; the oldest is forgotten, answered or not.

One record is one tracer: a block drawn at random from each run of equal touch class in a path,
because the blocks of a run share their fate and one of them tells it. A record without an answer is
not lost: "not reused for 90 s so far" is evidence too (a censored observation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

from bul.cache.eviction.adaptive_ages import Floats, Ints, bins_of_ages
from bul.cache.eviction.adaptive_request import (
    FACTOR_SIZES,
    INPUTS,
    TOUCH_CLASSES,
    RequestMemory,
)

__all__ = ["FACTOR_STARTS", "Observations", "ReuseLog"]

RECORDS_MAX = 32_768

FACTOR_STARTS = tuple(sum(FACTOR_SIZES[:number]) for number in range(len(FACTOR_SIZES)))
"""Factors are numbered through, so that one vector holds the multipliers of all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Observations:
    """Some records: [n] each, `factors` [n, factors], `inputs` [n, INPUTS + TOUCH_CLASSES].

    bins: the age bin of reuse, or of now where `reused` is False.
    """

    bins: Ints
    reused: npt.NDArray[np.bool_]
    touches: Ints
    gaps: Ints
    factors: npt.NDArray[np.int32]
    inputs: npt.NDArray[np.float32]


class ReuseLog:
    """The ring of records, as columns."""

    def __init__(self) -> None:
        self.written = 0
        self._tracers: dict[Hashable, int] = {}
        self._keys: list[Hashable] = [None] * RECORDS_MAX
        self._requests: list[RequestMemory | None] = [None] * RECORDS_MAX
        self._begun_s = np.zeros(RECORDS_MAX)
        self._ended_s = np.full(RECORDS_MAX, np.nan)
        self._touches = np.zeros(RECORDS_MAX, np.int64)
        self._gaps = np.zeros(RECORDS_MAX, np.int64)
        self._factors = np.zeros((RECORDS_MAX, len(FACTOR_SIZES)), np.int32)
        self._inputs = np.zeros((RECORDS_MAX, INPUTS + TOUCH_CLASSES), np.float32)

    def __len__(self) -> int:
        return min(self.written, RECORDS_MAX)

    def trace(self, key: Hashable, request: RequestMemory, touches: int, now_s: float) -> None:
        """Watch block `key` of `request` (described), of touch class `touches`, from now on."""
        slot = self.written % RECORDS_MAX
        self.written += 1
        old = self._keys[slot]
        if self._requests[slot] is not None and self._tracers.get(old) == slot:
            del self._tracers[old]
        self._keys[slot], self._requests[slot] = key, request
        self._tracers[key] = slot
        self._begun_s[slot], self._ended_s[slot] = now_s, np.nan
        self._touches[slot] = touches
        self._inputs[slot, INPUTS:] = 0.0
        self._inputs[slot, INPUTS + touches] = 1.0
        request.records.append(slot)
        self._describe(slot, request)

    def touched(self, key: Hashable, now_s: float) -> None:
        """`key` was used; if it was watched, its record is answered."""
        slot = self._tracers.pop(key, None)
        if slot is not None:
            self._ended_s[slot] = now_s

    def described_anew(self, request: RequestMemory) -> None:
        """The request has ended: its records now know its output tokens."""
        for slot in request.records:
            if self._requests[slot] is request:
                self._describe(slot, request)
        request.records = []

    def _describe(self, slot: int, request: RequestMemory) -> None:
        self._gaps[slot] = request.gap_class
        # One assignment: a lesson in another thread must not see a factor without its start.
        self._factors[slot] = np.add(request.factors, _STARTS)
        self._inputs[slot, :INPUTS] = request.inputs

    def observe(self, now_s: float, chosen: slice | Ints) -> Observations:
        """The records `chosen` (of the first `len(self)`) as they look at `now_s`."""
        # Copies, because a lesson in another thread looks at each twice.
        ended_s = np.array(self._ended_s[chosen])
        unanswered = np.isnan(ended_s)
        ages_s: Floats = np.where(unanswered, now_s, ended_s) - self._begun_s[chosen]
        return Observations(
            bins_of_ages(ages_s),
            ~unanswered,
            self._touches[chosen],
            self._gaps[chosen],
            np.array(self._factors[chosen]),
            self._inputs[chosen],
        )


_STARTS = np.array(FACTOR_STARTS, np.int32)
