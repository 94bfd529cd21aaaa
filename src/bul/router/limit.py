"""How many requests a replica may have under way: found by trying, up a little, down at once.

Refuses to know why a replica is slow. Additive increase, multiplicative decrease (Chiu and Jain,
1989): an overload - a 429, or a first byte later than the target - takes a tenth, a good answer
under a full load gives back one in so many. Between two decreases as many answers must come as
were under way, because those were all sent under the old limit.
"""

from __future__ import annotations

__all__ = ["ConcurrencyLimit"]

DECREASE = 0.9


class ConcurrencyLimit:
    """`now` is the limit, in [1, most]; it begins at `most`."""

    __slots__ = ("_answers_to_skip", "most", "now")

    def __init__(self, most: int) -> None:
        assert most >= 1
        self.most = float(most)
        self.now = float(most)
        self._answers_to_skip = 0

    def good(self, in_flight: int) -> None:
        """An answer came in time, while this many were under way."""
        if self._answers_to_skip:
            self._answers_to_skip -= 1
        if self.now < self.most and in_flight >= self.now / 2:
            self.now = min(self.most, self.now + 1 / self.now)

    def overloaded(self, in_flight: int) -> None:
        """An answer was refused or late, while this many were under way, itself included."""
        if self._answers_to_skip:
            self._answers_to_skip -= 1
            return
        self.now = max(1.0, min(self.now, in_flight) * DECREASE)
        self._answers_to_skip = int(self.now)
