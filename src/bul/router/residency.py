"""Which prefixes a replica probably holds, learned from what was sent to it.

Refuses to grow: least recently used hints go, tails before heads, so that what is left are whole
prefixes. It is a guess by design - a restart, an eviction or another router's requests change the
truth - and a wrong guess costs one prefill.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Residency"]


class Residency:
    """Hints of one replica, at most `hints_max`. A dict keeps them in order of their last use."""

    def __init__(self, hints_max: int) -> None:
        assert hints_max >= 0
        self._hints_max = hints_max
        self._hints: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._hints)

    def matched(self, hints: Sequence[int]) -> int:
        """How many of the first `hints` are held. Does not count as a use.

        A bisection: heads outlive tails here, so [0, matched) is held and [matched, end) is not.
        """
        held = self._hints
        low, high = 0, len(hints)
        if high == 0 or hints[0] not in held:
            return 0
        while low < high:
            middle = (low + high) // 2
            if hints[middle] in held:
                low = middle + 1
            else:
                high = middle
        return low

    def add(self, hints: Sequence[int]) -> None:
        """A prompt was sent: its hints become the last used ones, the head as the very last."""
        held = self._hints
        for hint in reversed(hints[: self._hints_max]):
            held.pop(hint, None)
            held[hint] = None
        while len(held) > self._hints_max:
            del held[next(iter(held))]

    def clear(self) -> None:
        self._hints.clear()
