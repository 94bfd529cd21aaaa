"""docker-compose.yml and prometheus.yml of a plan, as documents.

Refuses a fleet that was not found: `replicas` raises for a plan without one.
"""

from __future__ import annotations

from collections.abc import Mapping

from bul.errors import ConfigError
from bul.planner.plan import Plan

__all__ = ["FIRST_PHASE_OF_SEVERAL", "HEADER", "prometheus", "render", "replicas", "routers"]

Document = Mapping[str, object]

HEADER = """\
Made by `bul plan`; see README.md beside it.
Build and start:  docker-compose --compatibility up --build
One more replica: docker-compose --compatibility up -d --scale bul=N"""

FIRST_PHASE_OF_SEVERAL = 2
FIRST_PHASE_OF_TWO_ROUTERS = 3
SUBNET, DYNAMIC, ADDRESS = "172.28.7.0/24", "172.28.7.128/25", "172.28.7.{}"
"""Routers have addresses in the lower half, everything else gets one in the upper."""

STOP_GRACE = "45s"
"""A replica drains for 30 s (`serve.drain_s`) after SIGTERM; the engine must not cut it short."""


def replicas(plan: Plan) -> int:
    """The size to start with. Raises ConfigError for a plan that holds no target."""
    if plan.fleet is None:
        raise ConfigError(
            "this plan has no fleet: nothing to deploy",
            hint="a slower target, a smaller prompt or a faster profile; see the options' reasons",
        )
    fleet = plan.fleet
    return fleet.replicas_max if plan.question.scenario.fixed else fleet.replicas_min


def render(plan: Plan) -> Document:
    """The Compose specification, which Compose 1.27 and later read."""
    services: dict[str, object] = {"bul": _replica(plan)}
    services |= {name: _router(plan, name) for name in routers(plan)}
    if plan.question.phase.number >= FIRST_PHASE_OF_SEVERAL:
        services["valkey"] = _valkey()
        services["nginx"] = _nginx(plan)
    services["prometheus"] = _prometheus()
    network = {"ipam": {"config": [{"subnet": SUBNET, "ip_range": DYNAMIC}]}}
    return {
        "services": services,
        "networks": {"default": network},
        "volumes": {"kv": {}, "metrics": {}},
    }


def routers(plan: Plan) -> Mapping[str, str]:
    """Service name -> address. Addresses, not names: an nginx that cannot resolve a name at its
    start does not start, and nothing says so to the one who waits for it.
    """
    count = 1 if plan.question.phase.number < FIRST_PHASE_OF_TWO_ROUTERS else 2
    return {f"router{n}": ADDRESS.format(10 + n) for n in range(1, count + 1)}


def _image() -> dict[str, object]:
    return {
        "image": "${BUL_IMAGE:-bul:local}",
        "build": {"context": ".", "dockerfile": "Containerfile"},
        "volumes": ["./bul.toml:/etc/bul/bul.toml:ro"],
        "stop_grace_period": STOP_GRACE,
        "restart": "on-failure",
    }


def _health(port: int, path: str) -> dict[str, object]:
    url = f"http://127.0.0.1:{port}{path}"
    ask = f"import urllib.request as r; r.urlopen('{url}', timeout=2)"
    return {
        "test": ["CMD", "python3", "-c", ask],
        "interval": "5s",
        "timeout": "3s",
        "retries": 3,
        "start_period": "60s",
    }


def _deploy(count: int) -> dict[str, object]:
    """As in the guide: one at a time, ten seconds apart."""
    return {
        "replicas": count,
        "update_config": {"parallelism": 1, "delay": "10s", "order": "start-first"},
        "restart_policy": {"condition": "on-failure"},
    }


def _replica(plan: Plan) -> Document:
    image = _image()
    volumes = ["./bul.toml:/etc/bul/bul.toml:ro", "kv:/var/lib/bul"]
    return image | {
        "command": ["serve", "--host", "0.0.0.0"],  # noqa: S104 - in its container; keys are set
        "volumes": volumes,
        "expose": ["8002"],
        "healthcheck": _health(8002, "/health"),
        "deploy": _deploy(replicas(plan)),
    }


def _router(plan: Plan, name: str) -> Document:
    service = _image() | {
        "command": ["route", "--host", "0.0.0.0", "--discover", "http://bul:8002"],  # noqa: S104 - in its container; keys are set
        "healthcheck": _health(8000, "/health"),
        "networks": {"default": {"ipv4_address": routers(plan)[name]}},
        "depends_on": ["bul"],
    }
    if plan.question.phase.number < FIRST_PHASE_OF_SEVERAL:
        return service | {"ports": ["8000:8000"]}
    return service | {"expose": ["8000"]}


def _valkey() -> Document:
    return {
        "image": "${VALKEY_IMAGE:-valkey/valkey:8}",
        "command": ["valkey-server", "/etc/valkey.conf"],
        "volumes": ["./valkey.conf:/etc/valkey.conf:ro"],
        "expose": ["6379"],
        "restart": "on-failure",
    }


def _nginx(plan: Plan) -> Document:
    return {
        "image": "${NGINX_IMAGE:-nginx:1.28}",
        "volumes": ["./nginx.conf:/etc/nginx/nginx.conf:ro"],
        "tmpfs": ["/tmp"],  # noqa: S108 - the container's own
        "ports": ["8000:8080"],
        "depends_on": list(routers(plan)),
        "restart": "on-failure",
    }


def _prometheus() -> Document:
    return {
        "image": "${PROMETHEUS_IMAGE:-prom/prometheus:v3.5.0}",
        "volumes": ["./prometheus:/etc/prometheus:ro", "metrics:/prometheus"],
        "ports": ["127.0.0.1:9090:9090"],
        "restart": "on-failure",
    }


def prometheus(plan: Plan) -> Document:
    """prometheus.yml: every replica and router by DNS, the alerts, an Alertmanager."""
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["alerts.yml"],
        "alerting": {
            "alertmanagers": [{"static_configs": [{"targets": ["alertmanager:9093"]}]}],
        },
        "scrape_configs": [
            _scrape("bul", ["bul"], 8002),
            _scrape("bul-router", list(routers(plan)), 8000),
        ],
    }


def _scrape(job: str, names: list[str], port: int) -> Document:
    return {
        "job_name": job,
        "authorization": {"credentials_file": "/etc/prometheus/operator.key"},
        "dns_sd_configs": [{"names": names, "type": "A", "port": port}],
    }
