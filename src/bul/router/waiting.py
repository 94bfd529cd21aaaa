"""The line of requests for which no ready replica has room: first come, first served, bounded.

Refuses to hold what cannot be served in time: a full line turns the next one away at once, and
whoever has waited for the deadline is told when to come again.
"""

from __future__ import annotations

import collections
import math
import time
import typing
from collections.abc import Callable

if typing.TYPE_CHECKING:
    from bul.router.exchange import Exchange

__all__ = ["WaitingLine"]

RETRY_AFTER_S_MAX = 30
WAITS_KEPT_MAX = 8192


class WaitingLine:
    """At most `most` exchanges. waits_s: how long the last ones waited that were then served."""

    def __init__(
        self, most: int, deadline_s: float, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.deadline_s = deadline_s
        self.waits_s: collections.deque[float] = collections.deque(maxlen=WAITS_KEPT_MAX)
        self._most = most
        self._now_s = now_s
        self._line: dict[Exchange, float] = {}  # by arrival, with the time of it

    def __len__(self) -> int:
        return len(self._line)

    def join(self, exchange: Exchange) -> bool:
        """False when there is no place."""
        if len(self._line) >= self._most:
            return False
        self._line[exchange] = self._now_s()
        return True

    def next(self) -> Exchange:
        """Who came first, out of the line."""
        exchange = next(iter(self._line))
        self.waits_s.append(self._now_s() - self._line.pop(exchange))
        return exchange

    def leave(self, exchange: Exchange) -> None:
        """The client has gone, or its time is over."""
        self._line.pop(exchange, None)

    def retry_after_s(self) -> int:
        """Whole seconds after which the present line will have been served or given up."""
        share = len(self._line) / self._most if self._most else 1.0
        return max(1, min(RETRY_AFTER_S_MAX, math.ceil(share * self.deadline_s)))
