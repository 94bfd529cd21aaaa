"""The line of requests for which no ready replica has room: by priority, fair, bounded.

Refuses to hold what cannot be served in time: whoever has waited for the deadline is told when to
come again, and a full line turns somebody away at once: the last of the key with the longest line
in the lowest class, who may be the one who comes.

    interactive     every key has a line of its own, first come, first served;
    batch           the key to whom the fewest tokens were served goes next
    prefetch        (a class only if those above are empty)

Tokens, not requests, are what a replica has to give: a key that asks for little waits little
beside one that asks for much (Sheng et al., "Fairness in Serving Large Language Models", OSDI
2024: virtual token counters). A key that comes back starts where the least served of those in
line stands: no credit is gathered by staying away.
"""

from __future__ import annotations

import collections
import math
import time
import typing
from collections.abc import Callable

from bul.config import PRIORITIES
from bul.router.quota import Flow

if typing.TYPE_CHECKING:
    from bul.router.exchange import Exchange

__all__ = ["Place", "WaitingLine"]

RETRY_AFTER_S_MAX = 30
WAITS_KEPT_MAX = 8192


class Place(typing.NamedTuple):
    """Where somebody stands. rank: 0 goes first. tokens: estimated, of prompt and answer."""

    rank: int
    flow: Flow
    tokens: float


_Line = dict["Exchange", tuple[Place, float]]


class WaitingLine:
    """At most `most` exchanges. waits_s: how long the last ones waited that were then served.

    fair: without it, first come, first served within a class.
    """

    def __init__(
        self,
        most: int,
        deadline_s: float,
        now_s: Callable[[], float] = time.monotonic,
        *,
        fair: bool = True,
    ) -> None:
        self.deadline_s = deadline_s
        self.waits_s: collections.deque[float] = collections.deque(maxlen=WAITS_KEPT_MAX)
        self._most = most
        self._now_s = now_s
        self._fair = fair
        self.size = 0
        """The same as its length; read once per request, without a call."""
        # By class, then by key: (place, time of arrival) in the order of arrival.
        self._classes: list[dict[Flow, _Line]] = [{} for _ in PRIORITIES]
        self._places: dict[Exchange, Place] = {}

    def __len__(self) -> int:
        return self.size

    def join(self, exchange: Exchange, place: Place) -> Exchange | None:
        """Take the place; whoever is turned away for it, perhaps `exchange` itself."""
        turned_away: Exchange | None = None
        if self.size >= self._most:
            turned_away = self._last_of_the_longest(exchange, place)
            if turned_away is exchange:
                return exchange
            self.leave(turned_away)
        lines = self._classes[place.rank]
        line = lines.get(place.flow)
        if line is None:
            others = [flow.served for flow in lines]
            place.flow.served = max(place.flow.served, min(others, default=0.0))
            line = lines[place.flow] = {}
        line[exchange] = place, self._now_s()
        self._places[exchange] = place
        self.size += 1
        return turned_away

    def next(self) -> Exchange:
        """Whose turn it is, out of the line, which is not empty."""
        lines = next(lines for lines in self._classes if lines)
        if self._fair:
            flow = min(lines, key=lambda found: found.served)
        else:
            flow = min(lines, key=lambda found: next(iter(lines[found].values()))[1])
        exchange, (place, since_s) = next(iter(lines[flow].items()))
        flow.served += place.tokens / flow.limits.share
        self.leave(exchange)
        self.waits_s.append(self._now_s() - since_s)
        return exchange

    def leave(self, exchange: Exchange) -> None:
        """The client has gone, or its time is over."""
        place = self._places.pop(exchange, None)
        if place is None:
            return
        line = self._classes[place.rank][place.flow]
        del line[exchange]
        if not line:
            del self._classes[place.rank][place.flow]
        self.size -= 1

    def retry_after_s(self) -> int:
        """Whole seconds after which the present line will have been served or given up."""
        share = self.size / self._most if self._most else 1.0
        return max(1, min(RETRY_AFTER_S_MAX, math.ceil(share * self.deadline_s)))

    def _last_of_the_longest(self, exchange: Exchange, place: Place) -> Exchange:
        lowest = max((rank for rank, lines in enumerate(self._classes) if lines), default=0)
        if lowest < place.rank or not self.size:
            return exchange
        lines = self._classes[lowest]
        longest = max(lines, key=lambda flow: len(lines[flow]))
        own = len(lines.get(place.flow, ()))
        if lowest == place.rank and (not self._fair or len(lines[longest]) <= own + 1):
            return exchange
        return next(reversed(lines[longest]))
