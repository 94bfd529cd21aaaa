"""How many requests may be tried again: a share of the recent ones, never a storm.

Refuses to grow: a window of fixed slots, each a pair of counts. Without a budget, a replica that
fails under load makes every request two, and the retries take down what was still up.
"""

from __future__ import annotations

__all__ = ["RetryBudget"]

WINDOW_S = 10
"""Whole seconds; the window is this many one-second slots."""


class RetryBudget:
    """Allows retries up to `share` of the last ten seconds' requests, and at least `at_least`."""

    def __init__(self, *, share: float = 0.2, at_least: int = 10) -> None:
        self._share = share
        self._at_least = at_least
        self._seconds = [-WINDOW_S] * WINDOW_S
        self._requests = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S

    def request(self, now_s: float, count: int = 1) -> None:
        """Count so many new requests."""
        self._requests[self._slot(now_s)] += count

    def take(self, now_s: float) -> bool:
        """Whether one more retry is within the budget; if so it is counted."""
        slot = self._slot(now_s)
        oldest = int(now_s) - WINDOW_S
        live = [i for i, second in enumerate(self._seconds) if second > oldest]
        allowed = max(self._at_least, self._share * sum(self._requests[i] for i in live))
        if sum(self._retries[i] for i in live) + 1 > allowed:
            return False
        self._retries[slot] += 1
        return True

    def _slot(self, now_s: float) -> int:
        second = int(now_s)
        slot = second % WINDOW_S
        if self._seconds[slot] != second:
            self._seconds[slot] = second
            self._requests[slot] = self._retries[slot] = 0
        return slot
