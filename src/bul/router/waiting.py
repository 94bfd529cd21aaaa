"""The line of requests for which no ready replica has room: first come, first served, bounded.

Refuses to hold what cannot be served in time: a full line turns the next one away at once, and
whoever has waited for the deadline is told when to come again.
"""

from __future__ import annotations

import collections
import math
import typing

if typing.TYPE_CHECKING:
    from bul.router.exchange import Exchange

__all__ = ["WaitingLine"]

RETRY_AFTER_S_MAX = 30


class WaitingLine:
    """At most `most` exchanges."""

    def __init__(self, most: int, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._most = most
        self._line: collections.deque[Exchange] = collections.deque()

    def __len__(self) -> int:
        return len(self._line)

    def join(self, exchange: Exchange) -> bool:
        """False when there is no place."""
        if len(self._line) >= self._most:
            return False
        self._line.append(exchange)
        return True

    def next(self) -> Exchange:
        """Who came first, out of the line."""
        return self._line.popleft()

    def leave(self, exchange: Exchange) -> None:
        """The client has gone, or its time is over."""
        if exchange in self._line:
            self._line.remove(exchange)

    def retry_after_s(self) -> int:
        """Whole seconds after which the present line will have been served or given up."""
        share = len(self._line) / self._most if self._most else 1.0
        return max(1, min(RETRY_AFTER_S_MAX, math.ceil(share * self.deadline_s)))
