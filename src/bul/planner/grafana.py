"""A Grafana dashboard over the metrics of replicas, routers and scalers. A pure renderer;
`deploy/grafana/bul.json` is its output.

Refuses a second set of definitions: the guide's seven are the recording rules of `alerts.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

__all__ = ["PANELS", "Panel", "render_dashboard"]

WIDTH, HEIGHT, COLUMNS = 8, 7, 3
SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """queries: legend -> PromQL. unit: Grafana's name of it."""

    title: str
    unit: str
    queries: Mapping[str, str]
    says: str = ""


def _quantiles(metric: str) -> dict[str, str]:
    rate = f"sum by (le) (rate({metric}_bucket[5m]))"
    return {f"p{q}": f"histogram_quantile(0.{q}, {rate})" for q in (50, 95, 99)}


PANELS: tuple[tuple[str, Sequence[Panel]], ...] = (
    (
        "The guide's seven",
        (
            Panel(
                title="Requests per second", unit="reqps", queries={"all": "requests_per_second"}
            ),
            Panel(title="p95 latency", unit="ms", queries={"p95": "p95_latency"}),
            Panel(title="CPU", unit="percentunit", queries={"mean": "cpu_utilization"}),
            Panel(title="Memory", unit="percentunit", queries={"mean": "memory_utilization"}),
            Panel(title="Cache hit rate", unit="percentunit", queries={"tokens": "cache_hit_rate"}),
            Panel(title="Error rate", unit="percentunit", queries={"5xx and 429": "error_rate"}),
            Panel(title="Connections", unit="short", queries={"open": "active_connections"}),
        ),
    ),
    (
        "What users feel",
        (
            Panel(
                title="Time to the first token",
                unit="s",
                queries=_quantiles("bul_time_to_first_token_seconds"),
            ),
            Panel(
                title="Between two tokens",
                unit="s",
                queries=_quantiles("bul_inter_token_latency_seconds"),
            ),
            Panel(
                title="Queue delay",
                unit="s",
                queries={"{{instance}}": "bul_queue_delay_seconds"},
                says="How long the oldest waiting request has waited.",
            ),
        ),
    ),
    (
        "The cache",
        (
            Panel(
                title="Tokens given, by tier",
                unit="short",
                queries={"{{tier}}": "sum by (tier) (rate(bul_cache_tier_hit_tokens_total[5m]))"},
            ),
            Panel(
                title="Kept",
                unit="bytes",
                queries={"{{tier}}": "max by (tier) (bul_cache_tier_bytes)"},
                says="Of the fullest replica; a folder or server that they share is one.",
            ),
            Panel(
                title="Shut off or damaged",
                unit="short",
                queries={
                    "{{tier}} shut off": "max by (tier) (bul_cache_tier_read_breaker_open)",
                    "{{tier}} damaged": "sum by (tier) "
                    "(increase(bul_cache_tier_corrupted_total[15m]))",
                },
                says="Damaged blocks were misses; none was served.",
            ),
        ),
    ),
    (
        "Router and scaler",
        (
            Panel(
                title="Retries, hedges, shed",
                unit="reqps",
                queries={
                    "retries": "sum(rate(bul_router_retries_total[5m]))",
                    "hedges": "sum(rate(bul_router_hedges_total[5m]))",
                    "resumed": "sum(rate(bul_router_resumed_total[5m]))",
                    "shed": "sum(rate(bul_router_shed_total[5m]))",
                },
            ),
            Panel(
                title="Replicas",
                unit="short",
                queries={
                    "ready": "sum(bul_ready)",
                    "wanted": "sum(bul_scaler_replicas_wanted)",
                },
            ),
            Panel(
                title="Decisions carried out",
                unit="short",
                queries={
                    "{{direction}}": "sum by (direction) (increase(bul_scaler_acted_total[15m]))"
                },
            ),
        ),
    ),
)


def render_dashboard() -> str:
    """The dashboard as JSON, for Grafana's import or its provisioning."""
    panels: list[Mapping[str, object]] = []
    y = 0
    for title, row in PANELS:
        panels.append(_row(len(panels) + 1, title, y))
        for number, panel in enumerate(row):
            at = {
                "h": HEIGHT,
                "w": WIDTH,
                "x": number % COLUMNS * WIDTH,
                "y": y + 1 + number // COLUMNS * HEIGHT,
            }
            panels.append(_panel(len(panels) + 1, panel, at))
        y += 1 + -(-len(row) // COLUMNS) * HEIGHT
    source = {
        "type": "datasource",
        "name": "source",
        "label": "Prometheus",
        "query": "prometheus",
        "skipUrlSync": False,
        "multi": False,
        "refresh": 1,
    }
    return json.dumps(
        {
            "uid": "bul-region",
            "title": "BUL",
            "description": "Made by src/bul/planner/grafana.py.",
            "tags": ["bul"],
            "timezone": "browser",
            "editable": True,
            "schemaVersion": 39,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": [source]},
            "panels": panels,
        },
        indent=1,
    )


def _row(number: int, title: str, y: int) -> Mapping[str, object]:
    return {
        "type": "row",
        "id": number,
        "title": title,
        "collapsed": False,
        "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
        "panels": [],
    }


def _panel(number: int, panel: Panel, at: Mapping[str, int]) -> Mapping[str, object]:
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend,
        }
        for place, (legend, expression) in enumerate(panel.queries.items())
    ]
    return {
        "type": "timeseries",
        "id": number,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }
