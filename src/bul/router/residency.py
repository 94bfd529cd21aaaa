"""Which prefixes a replica holds: what it has told, else what was sent to it.

Refuses to grow: least recently used hints go, tails before heads, so that what is left are whole
prefixes. Without a replica's own word (`events.py`) it is a guess by design - a restart, an
eviction or another router's requests change the truth - and a wrong guess costs one prefill.

    told      hints, from the replica's block events while they are fresh; else None
    sent      hint -> when it was sent, or computed: always kept, so that a router that loses the
              events goes on with what it knows itself
    cold      of those sent, the ones that no answer has begun for: they are being computed

What was just computed counts for a moment even if the replica has not told yet.
"""

from __future__ import annotations

import collections
from collections.abc import Container, Iterable, Sequence

__all__ = ["COLD_S_MAX", "GRACE_S", "Residency"]

COLD_S_MAX = 30.0
"""Whoever has not begun to answer after this long is not believed to compute any more."""
GRACE_S = 1.0
"""What was computed is told within this time, or it was not kept."""


class Residency:
    """Hints of one replica, at most `hints_max` of those sent, in order of their last use. `told`
    is set by whoever follows the replica's events.
    """

    __slots__ = ("_cold", "_sent", "hints_max", "told")

    def __init__(self, hints_max: int) -> None:
        assert hints_max >= 0
        self.hints_max = hints_max
        self._sent: collections.OrderedDict[int, float] = collections.OrderedDict()
        self._cold: set[int] = set()
        self.told: Container[int] | None = None

    def __len__(self) -> int:
        """How many hints it was sent."""
        return len(self._sent)

    @property
    def computing(self) -> bool:
        """Whether anything that was sent has no answer yet."""
        return bool(self._cold)

    def matched(self, hints: Sequence[int], now_s: float = 0.0) -> int:
        """How many of the first `hints` are held, or will be when it comes to this prompt.

        Does not count as a use.
        """
        told = self.told
        if told is None:
            return _leading(self._sent, hints)
        low = _leading(told, hints)
        while low < len(hints) and self._is_recent(hints[low], now_s):
            low += 1
        return low

    def warm(self, hints: Sequence[int], now_s: float = 0.0, matched: int | None = None) -> int:
        """How many of the first `hints` are held already: [warm, matched) is being computed.

        matched: if that is known.
        """
        matched = self.matched(hints, now_s) if matched is None else matched
        cold = self._cold
        if cold:
            for index in range(matched):
                if hints[index] in cold:
                    return index
        return matched

    def add(self, hints: Sequence[int], now_s: float = 0.0) -> None:
        """A prompt was sent: its hints become the last used ones, the head as the very last."""
        sent, told, cold = self._sent, self.told, self._cold
        to_end = sent.move_to_end
        for hint in reversed(hints[: self.hints_max]):
            if hint in sent:
                to_end(hint)
                if told is None or hint in told or self._is_recent(hint, now_s):
                    continue
            cold.add(hint)
            sent[hint] = now_s
        while len(sent) > self.hints_max:
            cold.discard(sent.popitem(last=False)[0])

    def computed(self, hints: Sequence[int], now_s: float) -> None:
        """An answer to this prompt began: what was sent is there."""
        if not self._cold:
            return
        for hint in hints:
            if hint in self._cold:
                self._cold.discard(hint)
                self._sent[hint] = now_s

    def drop(self, hints: Iterable[int]) -> None:
        """The replica says that these are gone."""
        for hint in hints:
            self._sent.pop(hint, None)
            self._cold.discard(hint)

    def clear(self) -> None:
        """The replica is another one, or gone."""
        self._sent.clear()
        self._cold.clear()
        self.told = None

    def _is_recent(self, hint: int, now_s: float) -> bool:
        since_s = self._sent.get(hint)
        if since_s is None:
            return False
        return now_s - since_s < (COLD_S_MAX if hint in self._cold else GRACE_S)


def _leading(held: Container[int], hints: Sequence[int]) -> int:
    """A bisection: heads outlive tails here, so [0, found) is held and [found, end) is not."""
    if not hints or hints[0] not in held:
        return 0
    low, high = 1, len(hints)
    while low < high:
        middle = (low + high) // 2
        if hints[middle] in held:
            low = middle + 1
        else:
            high = middle
    return low
