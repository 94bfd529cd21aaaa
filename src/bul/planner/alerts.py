"""alerts.yml: the guide's seven metrics as recording rules, its two alerts, and those that BUL's
promises need. A pure renderer; `deploy/prometheus/alerts.yml` is its output.

Refuses to guess at silence: a rule over a metric that nobody sends does not fire, so "metrics
missing" is an alert of its own.

The guide writes `requests_per_second > 1000` and `cpu_utilization < 0.3` without labels: so the
recorded series are sums and means over the region, under just these names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import yaml

__all__ = ["ALERTS", "RECORDED", "Alert", "render_alerts"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """for_: how long the expression must hold, in Prometheus' words."""

    name: str
    expression: str
    for_: str
    severity: str
    summary: str
    next_step: str


RECORDED: Mapping[str, str] = {
    "requests_per_second": 'sum(rate(bul_requests_total{code!~"4.."}[1m]))',
    "p95_latency": "1000 * histogram_quantile(0.95, "
    "sum by (le) (rate(bul_request_duration_seconds_bucket[5m])))",
    "cpu_utilization": "avg(bul_cpu_utilization)",
    "memory_utilization": "avg(bul_memory_utilization)",
    "cache_hit_rate": "sum(rate(bul_prompt_tokens_cached_total[5m])) "
    "/ sum(rate(bul_prompt_tokens_total[5m]))",
    "error_rate": '(sum(rate(bul_requests_total{code=~"5..|429"}[5m])) or vector(0)) '
    "/ sum(rate(bul_requests_total[5m]))",
    "active_connections": "sum(bul_active_connections)",
}
"""The guide's name -> over what replicas send. p95_latency in milliseconds, as in the guide."""

ALERTS = (
    Alert(
        name="HighLoadRequiresScaling",
        expression="requests_per_second > 1000",
        for_="5m",
        severity="warning",
        summary="High load detected, consider scaling up",
        next_step="bul scale history, then bul plan with today's rate",
    ),
    Alert(
        name="LowUtilizationScaleDown",
        expression="cpu_utilization < 0.3",
        for_="30m",
        severity="info",
        summary="Low utilization, consider scaling down",
        next_step="bul scale history: the scaler says why it holds",
    ),
    Alert(
        name="MetricsMissing",
        expression='absent(bul_ready) or up{job=~"bul.*"} == 0',
        for_="2m",
        severity="critical",
        summary="A replica or router sends no metrics: nobody knows how it is",
        next_step="curl its /health; the scaler holds while it is blind",
    ),
    Alert(
        name="NoReplicaReady",
        expression="sum(bul_ready) == 0",
        for_="1m",
        severity="critical",
        summary="No replica takes requests",
        next_step="bul check post, and the replicas' logs",
    ),
    Alert(
        name="TierQuarantining",
        expression="sum by (tier) (increase(bul_cache_tier_corrupted_total[15m])) > 0",
        for_="0m",
        severity="warning",
        summary="Damaged blocks in tier {{ $labels.tier }}: each was a miss, none was served",
        next_step="bul cache check --fix, then look at the disk or the link",
    ),
    Alert(
        name="TierShutOff",
        expression="max by (tier) (bul_cache_tier_read_breaker_open) == 1",
        for_="2m",
        severity="warning",
        summary="Tier {{ $labels.tier }} is not asked any more: it failed or hung",
        next_step="bul cache stats; prompts are computed meanwhile",
    ),
    Alert(
        name="RequestsShed",
        expression="sum(rate(bul_router_shed_total[5m])) > 0",
        for_="5m",
        severity="warning",
        summary="Requests are turned away for want of room",
        next_step="bul scale history; more replicas, or a larger limit",
    ),
    Alert(
        name="RouterBlind",
        expression="bul_router_replica_events_fresh == 0 "
        "and bul_router_replica_events_snapshots_total > 0",
        for_="5m",
        severity="warning",
        summary="The router no longer hears what {{ $labels.replica }} keeps",
        next_step="the router's /replicas says why; it goes by its own dispatches meanwhile",
    ),
    Alert(
        name="TargetInfeasible",
        expression="bul_scaler_alert == 1",
        for_="5m",
        severity="warning",
        summary="More replicas would not reach the latency target",
        next_step="bul scale history says why; a slower target, or a faster replica",
    ),
    Alert(
        name="RegionPartitioned",
        expression="min by (peer) (bul_regions_peer_reachable) == 0",
        for_="2m",
        severity="warning",
        summary="Region {{ $labels.peer }} cannot be reached; it catches up by itself",
        next_step="bul regions status",
    ),
    Alert(
        name="ErrorsAboveOnePercent",
        expression="error_rate > 0.01",
        for_="5m",
        severity="critical",
        summary="More than one request in a hundred fails",
        next_step="bul check post",
    ),
)


def render_alerts() -> str:
    """alerts.yml, whole."""
    recorded = [{"record": name, "expr": rule} for name, rule in RECORDED.items()]
    groups = [
        {"name": "scaling_metrics", "rules": recorded},
        {"name": "scaling_alerts", "rules": [_rule(alert) for alert in ALERTS]},
    ]
    text = yaml.safe_dump({"groups": groups}, sort_keys=False, default_flow_style=False, width=1000)
    return "# Made by `bul plan`; the source is src/bul/planner/alerts.py.\n" + text


def _rule(alert: Alert) -> Mapping[str, object]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.for_,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "next": alert.next_step},
    }
