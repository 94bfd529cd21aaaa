"""Hedging: a second replica gets the request too when an answer begins far later than its like.

Refuses to guess: how long is long is learned per kind of request, and nothing is hedged before
enough answers of its kind were seen. Dean and Barroso, "The Tail at Scale" (CACM 2013): a second
request after the 95th percentile costs 5 % more requests; ours waits for twice that, because what
it is after is a replica that hangs (frozen, swapping, a dying disk) and not the last millisecond.

The first try stays alive as a `Rival`, since it may still answer first; then it takes over.
"""

from __future__ import annotations

import math
import typing

from bul.router.prompt import Prompt
from bul.router.replica import Replica

if typing.TYPE_CHECKING:
    from bul.router.exchange import Exchange
    from bul.router.http1 import Request
    from bul.router.upstream import UpstreamConnection

__all__ = ["FirstBytes", "Rival"]

QUANTILE = 0.95
STEP = 0.1
TIMES = 2.0
SEEN_MIN = 20
"""Answers of a kind before its quantile is believed."""
KINDS_MAX = 1024


class FirstBytes:
    """The 95th percentile of the time to the first byte, per kind of request.

    A kind is: stream or not, the power of two of the tokens to compute, and of those to write if
    the answer comes whole. The quantile goes up by a step where an answer was later and down by a
    19th of that where it was not, in proportion to itself: no samples are kept (after Ma,
    Muthukrishnan and Sandler, "Frugal Streaming", 2013).
    """

    def __init__(self, delay_min_s: float) -> None:
        self._delay_min_s = delay_min_s
        self._kinds: dict[int, list[float]] = {}

    def observe(self, prompt: Prompt, to_compute: float, waited_s: float) -> None:
        """An answer began `waited_s` after it was sent."""
        kind = _kind(prompt, to_compute)
        found = self._kinds.get(kind)
        if found is None:
            if len(self._kinds) < KINDS_MAX:
                self._kinds[kind] = [max(waited_s, 1e-4), 1]
            return
        found[0] *= 1 + STEP * QUANTILE if waited_s > found[0] else 1 - STEP * (1 - QUANTILE)
        found[1] += 1

    def delay_s(self, prompt: Prompt, to_compute: float) -> float:
        """How long to wait for the first byte before a second replica is asked; infinite if
        that is not known, or never to be done.
        """
        if not self._delay_min_s or not prompt.may_repeat:
            return math.inf
        found = self._kinds.get(_kind(prompt, to_compute))
        if found is None or found[1] < SEEN_MIN:
            return math.inf
        return max(self._delay_min_s, TIMES * found[0])


def _kind(prompt: Prompt, to_compute: float) -> int:
    size = int(to_compute).bit_length() << 8
    return size | 1 if prompt.stream else size | prompt.max_tokens.bit_length() << 1


class Rival:
    """An exchange's earlier try. Speaks to its connection as the exchange would, and becomes the
    exchange's own try with its first byte.
    """

    __slots__ = ("_exchange", "_taken_over", "ahead", "replica", "sent_s", "to_compute", "upstream")

    def __init__(
        self,
        exchange: Exchange,
        upstream: UpstreamConnection,
        *,
        sent_s: float,
        to_compute: float,
        ahead: int,
    ) -> None:
        self.replica: Replica = upstream.replica
        self.upstream = upstream
        self.sent_s = sent_s
        self.to_compute = to_compute
        self.ahead = ahead
        self._exchange = exchange
        self._taken_over = False
        upstream.exchange = self

    @property
    def request(self) -> Request:
        return self._exchange.request

    def refused_by(self, upstream: UpstreamConnection) -> bool:
        if upstream.status in (429, 503):
            self._exchange.rival_lost()
            return True
        self._taken_over = True
        self._exchange.promote_rival()
        return False

    def start(self, data: bytes) -> None:
        self._exchange.start(data)

    def write(self, data: bytes) -> None:
        self._exchange.write(data)

    def ended(self, upstream: UpstreamConnection | None, *, by_closing: bool = False) -> None:
        self._exchange.ended(upstream, by_closing=by_closing)

    def upstream_lost(self, upstream: UpstreamConnection, reason: str) -> None:
        if self._taken_over:
            self._exchange.upstream_lost(upstream, reason)
        else:
            self._exchange.rival_lost(failed=True)
