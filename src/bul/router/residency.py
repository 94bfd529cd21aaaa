"""Which prefixes a replica holds: what it has told, else what was sent to it.

Refuses to grow: least recently used hints go, tails before heads, so that what is left are whole
prefixes. Without a replica's own word (`events.py`) it is a guess by design - a restart, an
eviction or another router's requests change the truth - and a wrong guess costs one prefill.

    told      hint -> cached tokens, from the replica's block events while they are fresh; else None
    sent      hint -> when it was sent, WARM once an answer to it began: always kept, so that a
              router that loses the events goes on with what it knows itself
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["COLD_S_MAX", "Residency"]

WARM = -math.inf
COLD_S_MAX = 30.0
"""Whoever has not begun to answer after this long is not believed to compute any more."""


class Residency:
    """Hints of one replica, at most `hints_max` of those sent. A dict keeps them in order of
    their last use. `told` is set by whoever follows the replica's events.
    """

    __slots__ = ("_hints_max", "_sent", "told")

    def __init__(self, hints_max: int) -> None:
        assert hints_max >= 0
        self._hints_max = hints_max
        self._sent: dict[int, float] = {}
        self.told: Mapping[int, int] | None = None

    def __len__(self) -> int:
        """How many hints it was sent."""
        return len(self._sent)

    def matched(self, hints: Sequence[int], now_s: float = 0.0) -> int:
        """How many of the first `hints` are held, or will be when it comes to this prompt.

        Does not count as a use.
        """
        if self.told is None:
            return _leading(self._sent, hints, 0)
        low = _leading(self.told, hints, 0)
        sent, oldest_s = self._sent, now_s - COLD_S_MAX
        while low < len(hints) and sent.get(hints[low], WARM) > oldest_s:
            low += 1
        return low

    def warm(self, hints: Sequence[int]) -> int:
        """How many of the first `hints` are held already: [warm, matched) is being computed."""
        if self.told is not None:
            return _leading(self.told, hints, 0)
        sent, low, high = self._sent, 0, len(hints)
        while low < high:
            middle = (low + high) // 2
            if sent.get(hints[middle], 0.0) == WARM:
                low = middle + 1
            else:
                high = middle
        return low

    def add(self, hints: Sequence[int], now_s: float = 0.0) -> None:
        """A prompt was sent: its hints become the last used ones, the head as the very last."""
        sent, told = self._sent, self.told
        for hint in reversed(hints[: self._hints_max]):
            since_s = sent.pop(hint, now_s)
            if told is not None and since_s == WARM and hint not in told:
                since_s = now_s  # gone meanwhile: it is computed anew
            sent[hint] = since_s
        while len(sent) > self._hints_max:
            del sent[next(iter(sent))]

    def computed(self, hints: Sequence[int]) -> None:
        """An answer to this prompt began: what was sent is there."""
        sent = self._sent
        for hint in hints:
            if hint in sent:
                sent[hint] = WARM

    def drop(self, hints: Iterable[int]) -> None:
        """The replica says that these are gone."""
        for hint in hints:
            self._sent.pop(hint, None)

    def clear(self) -> None:
        """The replica is another one, or gone."""
        self._sent.clear()
        self.told = None


def _leading(held: Mapping[int, object], hints: Sequence[int], low: int) -> int:
    """A bisection: heads outlive tails here, so [0, found) is held and [found, end) is not."""
    high = len(hints)
    if high == low or hints[low] not in held:
        return low
    while low < high:
        middle = (low + high) // 2
        if hints[middle] in held:
            low = middle + 1
        else:
            high = middle
    return low
