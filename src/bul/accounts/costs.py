"""What replicas cost, from the hours and tokens that the ledger has. Pure.

Refuses to guess: without a price there is no cost, and from less than `SPAN_S_MIN` no day.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bul.accounts.book import DAY_S, day_of
from bul.accounts.records import ReplicaHour
from bul.accounts.store import UsageDay
from bul.accounts.usage import HOUR_S, Spent

__all__ = ["DayCost", "LastDay", "costs_by_day", "last_day"]

SPAN_S_MIN = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DayCost:
    """One region's UTC day. cost, cost_per_million_tokens: None without a price, or tokens.

    computed_tokens: of prompts, those that the cache did not have; cached_tokens: those it saved.
    """

    day_s: int
    region: str
    replica_hours: float
    cost: float | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    output_tokens: int
    cost_per_million_tokens: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LastDay:
    """replica_hours: in the last span_s; per_day: what that comes to in a whole day."""

    replica_hours: float
    span_s: float

    @property
    def per_day(self) -> float:
        return self.replica_hours * DAY_S / self.span_s


def costs_by_day(
    hours: Sequence[ReplicaHour], used: Sequence[UsageDay], price: float | None
) -> list[DayCost]:
    """A row for each day and region that has replicas or usage, oldest first.

    Tokens of a price are those that went in and came out, cached ones included.
    """
    seconds: dict[tuple[int, str], float] = {}
    for hour in hours:
        key = (day_of(hour.hour_s), hour.region)
        seconds[key] = seconds.get(key, 0.0) + hour.replica_seconds
    spent = {(one.day_s, one.region): one.spent for one in used}
    return [
        _cost(*key, seconds.get(key, 0.0) / HOUR_S, spent.get(key, Spent()), price)
        for key in sorted({*seconds, *spent})
    ]


def _cost(
    day_s: int, region: str, replica_hours: float, spent: Spent, price: float | None
) -> DayCost:
    cost = None if price is None else replica_hours * price
    tokens = spent.prompt_tokens + spent.output_tokens
    return DayCost(
        day_s=day_s,
        region=region,
        replica_hours=replica_hours,
        cost=cost,
        requests=spent.requests,
        prompt_tokens=spent.prompt_tokens,
        cached_tokens=spent.cached_tokens,
        computed_tokens=spent.prompt_tokens - spent.cached_tokens,
        output_tokens=spent.output_tokens,
        cost_per_million_tokens=None if cost is None or not tokens else cost * 1e6 / tokens,
    )


def last_day(hours: Sequence[ReplicaHour], now_s: float) -> LastDay | None:
    """Of one region, oldest first. None when nobody counted long enough, or not lately.

    The window is the present hour and the 23 before it, or what there is since counting began:
    `seconds` before the end of the first hour that has any.
    """
    present_s = int(now_s) // HOUR_S * HOUR_S
    from_s = present_s - DAY_S + HOUR_S
    if not hours or hours[-1].hour_s < present_s - HOUR_S:
        return None
    first = hours[0]
    began_s = min(first.hour_s + HOUR_S, now_s) - min(first.seconds, HOUR_S)
    span_s = now_s - max(from_s, began_s)
    if span_s < SPAN_S_MIN:
        return None
    total_s = sum(hour.replica_seconds for hour in hours if hour.hour_s >= from_s)
    return LastDay(replica_hours=total_s / HOUR_S, span_s=span_s)
