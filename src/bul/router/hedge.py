"""Hedging: a second replica gets the request too when an answer, or its next piece, is overdue.

Refuses to guess: how long is long is learned, per kind of request for the first byte and per
replica for the gaps in its streams, and nothing is hedged before enough was seen. Dean and
Barroso, "The Tail at Scale" (CACM 2013): a second request after the 95th percentile costs 5 %
more requests; ours waits for twice that, because what it is after is a replica that hangs
(frozen, swapping, a dying disk) and not the last millisecond.

The first try stays alive as a rival, since it may still answer first; then it takes over.
"""

from __future__ import annotations

import math

from bul.router.prompt import Prompt

__all__ = ["FirstBytes", "Gaps", "Percentile"]

QUANTILE = 0.95
STEP = 0.1
UP = 1 + STEP * QUANTILE
DOWN = 1 - STEP * (1 - QUANTILE)
TIMES = 2.0
SEEN_MIN = 20
"""Answers of a kind before its quantile is believed."""
KINDS_MAX = 1024
SECONDS_MIN = 1e-4


class Percentile:
    """The 95th percentile of what it is told, in one number: it goes up by a step where a value
    was higher and down by a 19th of that where it was not, in proportion to itself (after Ma,
    Muthukrishnan and Sandler, "Frugal Streaming", 2013).
    """

    __slots__ = ("_value", "seen")

    def __init__(self) -> None:
        self._value = 0.0
        self.seen = 0

    def add(self, seconds: float) -> None:
        value = self._value
        if not self.seen:
            value = seconds
        elif seconds > value:
            value *= UP
        else:
            value *= DOWN
        self._value = max(value, SECONDS_MIN)
        self.seen += 1

    def overdue_s(self, delay_min_s: float) -> float:
        """After how long a value is overdue; infinite while too few were seen."""
        if self.seen < SEEN_MIN:
            return math.inf
        return max(delay_min_s, TIMES * self._value)


class FirstBytes:
    """The time to the first byte, per kind of request: stream or not, the power of two of the
    tokens to compute, and of those to write if the answer comes whole.
    """

    def __init__(self, delay_min_s: float) -> None:
        self._delay_min_s = delay_min_s
        self._kinds: dict[int, Percentile] = {}

    def kind(self, prompt: Prompt, to_compute: float) -> Percentile | None:
        """Where the first byte of this answer counts; None when there are too many kinds."""
        size = int(to_compute).bit_length() << 8
        kind = size | 1 if prompt.stream else size | prompt.max_tokens.bit_length() << 1
        found = self._kinds.get(kind)
        if found is None and len(self._kinds) < KINDS_MAX:
            found = self._kinds[kind] = Percentile()
        return found

    def delay_s(self, prompt: Prompt, kind: Percentile | None) -> float:
        """How long to wait for the first byte before a second replica is asked; infinite if
        that is not known, or never to be done.
        """
        if kind is None or not self._delay_min_s or not prompt.may_repeat:
            return math.inf
        return kind.overdue_s(self._delay_min_s)


class Gaps:
    """The longest gap of each stream: of this replica, or of all while it has shown too few."""

    __slots__ = ("_all", "_own")

    def __init__(self, everybody: Percentile) -> None:
        self._own = Percentile()
        self._all = everybody

    def observe(self, longest_s: float) -> None:
        """A stream has ended, whose longest gap was this."""
        self._own.add(longest_s)
        self._all.add(longest_s)

    def delay_s(self, delay_min_s: float) -> float:
        """How long a stream may be silent before another replica is asked to go on."""
        if not delay_min_s:
            return math.inf
        own_s = self._own.overdue_s(delay_min_s)
        return own_s if own_s < math.inf else self._all.overdue_s(delay_min_s)
