"""A plan as files to deploy: name -> text. Pure; the caller writes them.

Refuses secrets of its own making: all are arguments, and of a client's key only the hash is
rendered. No image of a registry is named beyond the short names of the public ones.

One picture for all of them: clients -> nginx (from phase 2 on) -> routers -> replicas, the
replicas found by a DNS name that resolves to all of them; a Valkey that they share from phase 2
on; Prometheus beside them with the alerts of `alerts.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import yaml

from bul.planner import compose, kubernetes
from bul.planner.alerts import render_alerts
from bul.planner.grafana import render_dashboard
from bul.planner.plan import Plan
from bul.router.nginx import NginxFront, render

__all__ = ["CONTAINERFILE", "Secrets", "render_files", "to_yaml"]

Files = Mapping[str, str]

CONTAINERFILE = """\
# One image for replicas and routers: `bul serve`, `bul route`.
# Wheels first:  python3 -m pip wheel --wheel-dir wheels PATH-OF-THE-BUL-CHECKOUT
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
COPY wheels /wheels
RUN python3 -m venv /opt/bul \\
    && /opt/bul/bin/pip install --no-cache-dir --no-index --find-links=/wheels bul \\
    && rm -rf /wheels
# Not root; KV lies in the only folder that it may write to.
RUN mkdir -p /var/lib/bul && chown 65534:65534 /var/lib/bul
USER 65534:65534
WORKDIR /var/lib/bul
ENV BUL_CONFIG=/etc/bul/bul.toml XDG_CACHE_HOME=/var/lib/bul PYTHONUNBUFFERED=1
EXPOSE 8000 8002
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/bul/bin/python", "-m", "bul"]
CMD ["serve", "--host", "0.0.0.0"]
"""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Secrets:
    """hashes: key name -> SHA-256 in hex, as `[keys]` wants them, "operator" among them.

    cache_secret: from which the salts of tenants are made; the same for all replicas and regions.
    valkey_password: of the shared tier. operator_key: with it, routers hear what replicas keep.
    """

    hashes: Mapping[str, str]
    cache_secret: str
    valkey_password: str
    operator_key: str


def render_files(plan: Plan, secrets: Secrets, *, autoscaler: str = "") -> Files:
    """Everything to deploy `plan`. autoscaler: "hpa" or "keda" for one that is not BUL's own.

    Raises ConfigError for a plan without a fleet.
    """
    files = {
        "Containerfile": CONTAINERFILE,
        "bul.toml": render_toml(plan, secrets),
        "docker-compose.yml": to_yaml(compose.render(plan), compose.HEADER),
        "nginx.conf": render(_front(plan)),
        "prometheus/prometheus.yml": to_yaml(compose.prometheus(plan), PROMETHEUS_HEADER),
        "prometheus/alerts.yml": render_alerts(),
        "grafana/bul.json": render_dashboard(),
        "valkey.conf": render_valkey(plan, secrets),
    }
    for name, documents in kubernetes.render(plan, autoscaler=autoscaler).items():
        header = kubernetes.HEADERS.get(name, "")
        files[f"kubernetes/{name}"] = header + "---\n".join(to_yaml(d) for d in documents)
    return files


def _front(plan: Plan) -> NginxFront:
    urls = [f"http://{address}:8000" for address in compose.routers(plan).values()]
    return NginxFront(upstreams=urls, listen="0.0.0.0:8080", folder="/tmp")  # noqa: S108 - in its container


PROMETHEUS_HEADER = (
    "Made by `bul plan`. operator.key holds the operator's key; the alerts are beside this file."
)


def to_yaml(document: Mapping[str, object], header: str = "") -> str:
    """Keys in the order given; no anchors, no line folding."""
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1000)
    return "".join(f"# {line}\n" for line in header.splitlines()) + text


def render_toml(plan: Plan, secrets: Secrets) -> str:
    """The region's settings; a JSON string is a TOML string too."""
    sections: dict[str, Mapping[str, object]] = {
        "cache": dict(plan.cache) | {"persistence_dir": "/var/lib/bul/kv"},
        "serve": {
            "port": 8002,
            "slots": plan.question.profile.slots,
            "cache_secret": secrets.cache_secret,
        },
        "route": {
            "port": 8000,
            "policy": "prefix",
            "operator_secret": secrets.operator_key,
        },
    }
    if shares(plan):
        sections["cache"] = {**sections["cache"], "shared_url": _valkey_url(secrets)}
    lines = ["# Made by `bul plan`. Keys are kept as hashes; bul keys create NAME makes more."]
    for name, fields in sections.items():
        lines += ["", f"[{name}]"]
        lines += [f"{field} = {_toml(value)}" for field, value in fields.items()]
    lines += ["", "[keys]"]
    lines += [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in secrets.hashes.items()]
    return "\n".join(lines) + "\n"


def shares(plan: Plan) -> bool:
    """Whether replicas on several hosts share a Valkey: from the guide's phase 2 on."""
    return plan.question.phase.number >= compose.FIRST_PHASE_OF_SEVERAL


def render_valkey(plan: Plan, secrets: Secrets) -> str:
    """Bounded, keyed, nothing on disk: KV is a cache, and its loss a miss."""
    gigabytes = 2 ** (plan.question.phase.number - 1)
    return (
        f"bind 0.0.0.0\nport 6379\nrequirepass {secrets.valkey_password}\n"
        f"maxmemory {gigabytes}gb\nmaxmemory-policy allkeys-lru\n"
        'save ""\nappendonly no\n'
    )


def _valkey_url(secrets: Secrets) -> str:
    return f"redis://:{secrets.valkey_password}@valkey:6379/0"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value)
