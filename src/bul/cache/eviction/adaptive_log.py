"""What was seen of reuse: for each traced block, what it was, and when (or not yet) it came back.

It refuses to grow: a ring of RECORDS_MAX records; the oldest is forgotten, answered or not.

One record is one tracer: a block drawn at random from each run of equal touch class in a path,
because the blocks of a run share their fate and one of them tells it. A record without an answer is
not lost: "not reused for 90 s so far" is evidence too (a censored observation).

Two sides: a request's thread only notes what happened (`trace`, `touched`, `ended`); the columns
belong to whoever learns, who calls `catch_up` first. So nobody reads what another is writing.
"""

from __future__ import annotations

import collections
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
    describe,
)

__all__ = ["FACTOR_STARTS", "Observations", "ReuseLog"]

RECORDS_MAX = 32_768
NOTES_MAX = 16_384
"""Above so many unread notes nothing new is traced: the learner is late."""

FACTOR_STARTS = tuple(sum(FACTOR_SIZES[:number]) for number in range(len(FACTOR_SIZES)))
"""Factors are numbered through, so that one vector holds the multipliers of all."""
_STARTS = np.array(FACTOR_STARTS, np.int32)


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
    """The ring of records, as columns, and the notes that are not in it yet."""

    def __init__(self) -> None:
        self.written = 0
        self.tracers: dict[Hashable, int] = {}
        self._keys: list[Hashable] = [None] * RECORDS_MAX
        # (slot, request, touch class, time): traced; no request: reused; slot -1: ended.
        self._notes: collections.deque[tuple[int, RequestMemory | None, int, float]] = (
            collections.deque()
        )
        self._read = 0
        self._requests: list[RequestMemory | None] = [None] * RECORDS_MAX
        self._begun_s = np.zeros(RECORDS_MAX)
        self._ended_s = np.full(RECORDS_MAX, np.nan)
        self._touches = np.zeros(RECORDS_MAX, np.int64)
        self._gaps = np.zeros(RECORDS_MAX, np.int64)
        self._factors = np.zeros((RECORDS_MAX, len(FACTOR_SIZES)), np.int32)
        self._inputs = np.zeros((RECORDS_MAX, INPUTS + TOUCH_CLASSES), np.float32)

    # a request's thread

    def trace(self, key: Hashable, request: RequestMemory, touches: int, now_s: float) -> None:
        """Watch block `key` of `request`, of touch class `touches`, from now on."""
        if len(self._notes) >= NOTES_MAX:
            return
        slot = self.written % RECORDS_MAX
        self.written += 1
        old = self._keys[slot]
        if self.tracers.get(old) == slot:
            del self.tracers[old]
        self._keys[slot] = key
        self.tracers[key] = slot
        request.records += (slot,)
        self._notes.append((slot, request, touches, now_s))

    def touched(self, key: Hashable, now_s: float) -> None:
        """`key`, one of `tracers`, was used: its record is answered."""
        self._notes.append((self.tracers.pop(key), None, 0, now_s))

    def ended(self, request: RequestMemory) -> None:
        """The request's output is known: its records are to say so."""
        if len(self._notes) < NOTES_MAX:
            self._notes.append((-1, request, 0, 0.0))

    # whoever learns

    def __len__(self) -> int:
        """Records in the columns."""
        return min(self._read, RECORDS_MAX)

    def catch_up(self) -> None:
        """Move all notes into the columns."""
        notes = self._notes
        described: dict[int, RequestMemory] = {}
        while notes:
            slot, request, touches, now_s = notes.popleft()
            if request is None:
                self._ended_s[slot] = now_s
            elif slot < 0:
                described.update(
                    (at, request) for at in request.records if self._requests[at] is request
                )
                request.records = ()
            else:
                self._read += 1
                self._requests[slot] = request
                self._begun_s[slot], self._ended_s[slot] = now_s, np.nan
                self._touches[slot] = touches
                described[slot] = request
        if described:
            self._describe(described)

    def _describe(self, described: dict[int, RequestMemory]) -> None:
        slots = np.fromiter(described, np.int64, len(described))
        facts = describe(list(described.values()))
        self._gaps[slots] = facts.gaps
        self._factors[slots] = facts.factors + _STARTS
        self._inputs[slots, :INPUTS] = facts.inputs
        self._inputs[slots, INPUTS:] = self._touches[slots, None] == _CLASSES

    def observe(self, now_s: float, chosen: slice | Ints) -> Observations:
        """The records `chosen` (of the first `len(self)`) as they look at `now_s`."""
        ended_s = self._ended_s[chosen]
        unanswered = np.isnan(ended_s)
        ages_s: Floats = np.where(unanswered, now_s, ended_s) - self._begun_s[chosen]
        return Observations(
            bins_of_ages(ages_s),
            ~unanswered,
            self._touches[chosen],
            self._gaps[chosen],
            self._factors[chosen],
            self._inputs[chosen],
        )


_CLASSES = np.arange(TOUCH_CLASSES)
