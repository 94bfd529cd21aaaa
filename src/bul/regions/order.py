"""Whom to ask for blocks that are not here, when, and whether at all. Pure numbers, no clock.

Refuses to ask a region whose breaker is open, or one that would lose against computing: a distance
of 80 ms and 64 kB at 10 MB/s take 86 ms, and a prefill of 64 tokens on a GPU takes 3.

Local first is the caller's. Of the others the nearest by measured RTT is asked at once; the next
one when that has said no, or has been silent for longer than it should have been (a hedge), so a
region that has just died costs a hedge and not a timeout. General values are small and may be
anywhere: for them all are asked at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from bul.cache.breaker import Breaker
from bul.cache.placement import BreakEven, PrefillRate

__all__ = ["Ask", "Link", "ask_order"]

RTT_UNKNOWN_S = 0.1
RTT_SHARE = 0.25
HEDGE_MARGIN_S = 0.01
"""Beyond twice the spread: a busy machine's scheduling."""


class Link:
    """What is known of one region from here: how far, how fast, and whether it answers."""

    __slots__ = ("_spread_s", "break_even", "breaker", "region", "rtt_s", "synced")

    def __init__(self, region: str, prefill: PrefillRate | None = None) -> None:
        self.region = region
        # One failure is enough: a ping every half second says when it is back, and until then each
        # question to a dead region would cost its deadline.
        self.breaker = Breaker(failures_max=1, pause_s=1.0, pause_s_max=30.0)
        self.break_even = BreakEven(prefill or PrefillRate(), enabled=prefill is not None)
        self.rtt_s: float | None = None
        self._spread_s = 0.0
        self.synced = False
        """All that it has is in our catalogue, as of the last anti-entropy with it."""

    def answered(self, seconds: float, now_s: float) -> None:
        """A small question was answered in `seconds`. RFC 6298's smoothing, a bit quicker."""
        self.breaker.record(ok=True, now_s=now_s)
        if self.rtt_s is None:
            self.rtt_s, self._spread_s = seconds, seconds / 2
            return
        self._spread_s += RTT_SHARE * (abs(seconds - self.rtt_s) - self._spread_s)
        self.rtt_s += RTT_SHARE * (seconds - self.rtt_s)

    def failed(self, now_s: float) -> None:
        """It did not answer, or not in time, or not truthfully."""
        self.synced = False
        self.breaker.record(ok=False, now_s=now_s)

    @property
    def hedge_s(self) -> float:
        """A silence longer than this is suspicious."""
        rtt_s = RTT_UNKNOWN_S if self.rtt_s is None else self.rtt_s
        return rtt_s + 4 * self._spread_s + HEDGE_MARGIN_S


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """Ask `region` `start_s` seconds from now at the latest; at once if those before said no."""

    region: str
    start_s: float


def ask_order(
    links: Iterable[Link],
    *,
    deadline_s: float,
    at_once: bool = False,
    size_bytes: int = 0,
    tokens: int = 0,
) -> tuple[Ask, ...]:
    """Whom to ask, nearest first. size_bytes, tokens: of what is wanted, 0 if unknown.

    at_once: all in parallel. Nobody is asked who could not answer before `deadline_s`.
    """
    open_links = [link for link in links if not link.breaker.is_open]
    near = sorted(open_links, key=lambda link: (_rtt_s(link), link.region))
    asks: list[Ask] = []
    start_s = 0.0
    for link in near:
        if start_s + _rtt_s(link) >= deadline_s:
            break
        if size_bytes and not link.break_even.ask(size_bytes, tokens).load:
            continue
        asks.append(Ask(link.region, 0.0 if at_once else start_s))
        start_s += link.hedge_s
    return tuple(asks)


def _rtt_s(link: Link) -> float:
    return RTT_UNKNOWN_S if link.rtt_s is None else link.rtt_s
