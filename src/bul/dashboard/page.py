"""What the live page shows: a bounded history of the guide's seven, and the region as it is now.

Refuses to smooth over gaps: a moment without data is null in the document, and a gap in the curve.
No I/O and no clock; `collect.py` looks, `index.html` draws.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence

__all__ = ["HISTORY_MAX", "Moment", "ReplicaView", "View", "merge", "tiers_of"]

HISTORY_MAX = 720
"""An hour of moments five seconds apart."""
SUMMED = ("requests_per_second", "active_connections")
MEANS = ("cpu_utilization", "memory_utilization")
BY_TRAFFIC = ("cache_hit_rate", "error_rate")

Signals = Mapping[str, float | None]
Parts = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """at_s: seconds since the epoch. signals: the guide's seven for the whole region."""

    at_s: float
    signals: Signals
    replicas: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaView:
    """One row. signals, parts: None if it did not show them."""

    url: str
    state: str
    in_flight: int
    requests: int
    signals: Signals | None = None
    parts: Parts | None = None


def merge(signals: Sequence[Signals]) -> dict[str, float | None]:
    """The region's seven from its replicas'. Rates and connections add up, utilisations are means,
    shares are weighted by traffic, and p95_latency is the slowest replica's: percentiles do not
    add up, and the true one is not above it.
    """
    merged: dict[str, float | None] = {}
    for name in SUMMED:
        merged[name] = _sum([one.get(name) for one in signals])
    for name in MEANS:
        known = [value for one in signals if (value := one.get(name)) is not None]
        merged[name] = sum(known) / len(known) if known else None
    for name in BY_TRAFFIC:
        merged[name] = _weighted(signals, name)
    slowest = [value for one in signals if (value := one.get("p95_latency")) is not None]
    merged["p95_latency"] = max(slowest, default=None)
    return merged


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _weighted(signals: Sequence[Signals], name: str) -> float | None:
    pairs = [
        (value, one.get("requests_per_second") or 0.0)
        for one in signals
        if (value := one.get(name)) is not None
    ]
    weight = sum(traffic for _, traffic in pairs)
    if weight > 0:
        return sum(value * traffic for value, traffic in pairs) / weight
    return sum(value for value, _ in pairs) / len(pairs) if pairs else None


def tiers_of(replicas: Sequence[ReplicaView]) -> list[dict[str, float | str | None]]:
    """One row a tier, fastest first: tokens given, its share of all asked, bytes and their limit.

    A tier that replicas share shows the same bytes in each of them: the most counts, not the sum.
    """
    shown = [replica.parts for replica in replicas if replica.parts]
    asked = sum(parts.get("engine", {}).get("asked_tokens_total", 0.0) for parts in shown)
    names = dict.fromkeys(
        name for parts in shown for name in parts if name not in ("engine", "values")
    )
    rows: list[dict[str, float | str | None]] = []
    for name in names:
        figures = [parts[name] for parts in shown if name in parts]
        hits = sum(one.get("hit_tokens_total", 0.0) for one in figures)
        together = sum if name == "ram" else max
        rows.append(
            {
                "name": name,
                "hit_tokens": hits,
                "hit_share": hits / asked if asked else None,
                "blocks": together(one.get("blocks", 0.0) for one in figures),
                "bytes": together(one.get("bytes", 0.0) for one in figures),
                "bytes_max": together(one.get("bytes_max", 0.0) for one in figures),
                "shut_off": float(
                    any(
                        one.get("read_breaker_open") or one.get("write_breaker_open")
                        for one in figures
                    )
                ),
            }
        )
    return rows


class View:
    """The document behind the page. price_per_replica_hour: None shows no cost."""

    def __init__(self, *, name: str, price_per_replica_hour: float | None = None) -> None:
        self._name = name
        self._price = price_per_replica_hour
        self._moments: deque[Moment] = deque(maxlen=HISTORY_MAX)
        self._replicas: Sequence[ReplicaView] = ()

    def add(self, at_s: float, replicas: Sequence[ReplicaView]) -> None:
        """One look at the region."""
        self._replicas = replicas
        seen = [one.signals for one in replicas if one.signals is not None]
        ready = sum(one.state == "ready" for one in replicas)
        self._moments.append(Moment(at_s=at_s, signals=merge(seen), replicas=ready))

    def document(
        self,
        *,
        decisions: Sequence[Mapping[str, object]] = (),
        regions: Sequence[Mapping[str, object]] = (),
        hours: tuple[int, float] | None = None,
    ) -> dict[str, object]:
        """Plain values for JSON. decisions: the scaler's records, oldest first. hours: replicas
        that are paid for now, and replica-seconds of this UTC day; None if nobody counts them.
        """
        moments = list(self._moments)
        paid = len(self._replicas) if hours is None else hours[0]
        return {
            "name": self._name,
            "times_s": [moment.at_s for moment in moments],
            "replicas_over_time": [moment.replicas for moment in moments],
            "series": {
                name: [moment.signals.get(name) for moment in moments]
                for name in (*SUMMED, *MEANS, *BY_TRAFFIC, "p95_latency")
            },
            "replicas": [self._row(replica) for replica in self._replicas],
            "tiers": tiers_of(self._replicas),
            "decisions": [one for one in decisions if one.get("direction") != "hold"],
            "last_decision": decisions[-1] if decisions else None,
            "regions": list(regions),
            "cost_per_hour": None if self._price is None else self._price * paid,
            "cost_today": None
            if self._price is None or hours is None
            else self._price * hours[1] / 3600.0,
            "replica_hours_today": None if hours is None else hours[1] / 3600.0,
        }

    @staticmethod
    def _row(replica: ReplicaView) -> dict[str, object]:
        parts = replica.parts or {}
        return {
            "url": replica.url,
            "state": replica.state,
            "in_flight": replica.in_flight,
            "requests": replica.requests,
            "blocks": parts.get("ram", {}).get("blocks"),
            "bytes": parts.get("ram", {}).get("bytes"),
            "p95_latency": (replica.signals or {}).get("p95_latency"),
            "cache_hit_rate": (replica.signals or {}).get("cache_hit_rate"),
            "cpu_utilization": (replica.signals or {}).get("cpu_utilization"),
        }
