"""README.md of a rendered deployment: what the files are and the commands, in order."""

from __future__ import annotations

from collections.abc import Iterable

from bul.planner.plan import Plan

__all__ = ["render_readme"]

WHAT = {
    "Containerfile": "the image of replicas and routers",
    "bul.toml": "settings and the secrets of the region: keep it private",
    "docker-compose.yml": "all of it on one machine or a swarm",
    "nginx.conf": "the front of the routers; nothing is lost when one of them restarts",
    "valkey.conf": "the shared tier: bounded, with a password",
    "prometheus/prometheus.yml": "what is scraped",
    "prometheus/alerts.yml": "the guide's metrics and alerts, and BUL's own",
    "grafana/bul.json": "a dashboard to import",
    "prometheus/operator.key": "lets Prometheus read the metrics",
    "client.key": "the first client's API key",
    "plan.json": "the plan, with every option and the source of every figure",
    "plan.html": "the options as a picture",
}


def render_readme(plan: Plan, names: Iterable[str]) -> str:
    """Markdown; names: the files that are written beside it."""
    rows = "\n".join(f"| `{name}` | {WHAT.get(name, 'Kubernetes')} |" for name in sorted(names))
    findings = "\n".join(f"- {finding}" for finding in plan.findings) or "- none"
    return f"""\
# Phase {plan.question.phase.number}: {plan.question.phase.title}, {plan.question.scenario.name}

Made by `bul plan`.

    python3 -m pip wheel --wheel-dir wheels PATH-OF-THE-BUL-CHECKOUT
    docker-compose --compatibility up --build -d
    curl -H "Authorization: Bearer $(cat client.key)" localhost:8000/v1/models

On Kubernetes, with the image pushed to where the cluster pulls from:

    kubectl create secret generic bul --from-file=bul.toml
    kubectl create secret generic valkey --from-file=valkey.conf
    kubectl apply -f kubernetes/

| file | what |
|---|---|
{rows}

## What to know

{findings}
"""
