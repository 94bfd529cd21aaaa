"""Configuration of an Envoy in front of several routers, or of replicas: a pure renderer.

Refuses what it cannot write safely: a URL that is none, a path with a quote or a line end.

Two files, as JSON, which Envoy reads as it reads YAML. The bootstrap never changes; the endpoints
do, and Envoy takes them up by itself when the file is *moved* into place, without a restart:

    ignore_health_on_host_removal    one that is gone from the file goes at once: without this,
                                     it stays until a health check fails too
    health checks of /ready          one that drains says 503: no new request, running ones finish
    retry_on connect-failure, reset, refused-stream, 503
                                     another one is asked while no byte of an answer has come
    max_retries                      three at a time by default: a replica that goes has more
    LEAST_REQUEST                    what the guide's least_conn is
    no timeout of whole answers      streams are long; silence is bounded instead
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec

from bul.errors import ConfigError
from bul.router.nginx import LISTEN, UNSAFE
from bul.router.replica import address_of

__all__ = ["ENDPOINTS_FILE", "EnvoyFront", "render_bootstrap", "render_endpoints"]

ENDPOINTS_FILE = "endpoints.json"
CLUSTER = "bul"
BODY_BYTES_MAX = 4 << 20
TRIES_MAX = 3
UNDER_WAY_MAX = 16_384
BREAKERS = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
RETRY_ON = (
    "connect-failure",
    "refused-stream",
    "reset",
    "retriable-status-codes",
)
_TYPES = "type.googleapis.com/envoy"
_EDS = f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment"
_HTTP = f"{_TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FILTERS = f"{_TYPES}.extensions.filters.http"
_UPSTREAM = f"{_TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"
_PREVIOUS = f"{_TYPES}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EnvoyFront:
    """listen: HOST:PORT. folder: absolute path of the endpoints' file.

    silence_s: a replica may say nothing for this long. Raises ConfigError.
    """

    listen: str = "127.0.0.1:8080"
    folder: str = "/var/lib/bul-envoy"
    connect_s: float = 1.0
    silence_s: float = 300.0

    def __post_init__(self) -> None:
        if not LISTEN.fullmatch(self.listen) or not self.listen.rpartition(":")[2].isdigit():
            raise ConfigError(f"listen must look like 127.0.0.1:8080, was {self.listen!r}")
        if not self.folder.startswith("/") or UNSAFE.search(self.folder):
            raise ConfigError(f"folder must be an absolute, plain path, was {self.folder!r}")


def render_endpoints(upstreams: Sequence[str]) -> str:
    """The file that changes: who takes requests now. Raises ConfigError for a URL that is none."""
    for url in upstreams:
        host, port = address_of(url)
        if not LISTEN.fullmatch(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"):
            raise ConfigError(f"upstream {url!r} must look like http://127.0.0.1:8002")
    endpoints = [
        {"endpoint": {"address": _address(*address_of(url))}} for url in dict.fromkeys(upstreams)
    ]
    assignment = {
        "@type": _EDS,
        "cluster_name": CLUSTER,
        "endpoints": [{"lb_endpoints": endpoints}],
    }
    return _text({"version_info": "1", "resources": [assignment]})


def render_bootstrap(front: EnvoyFront) -> str:
    """The file for `envoy -c FILE`."""
    host, _, port = front.listen.rpartition(":")
    listener = {
        "name": CLUSTER,
        "address": _address(host.strip("[]"), int(port)),
        "filter_chains": [{"filters": [_http_filter(front)]}],
    }
    resources = {"listeners": [listener], "clusters": [_cluster(front)]}
    return _text({"node": {"id": CLUSTER, "cluster": CLUSTER}, "static_resources": resources})


def _http_filter(front: EnvoyFront) -> dict[str, object]:
    route = {
        "cluster": CLUSTER,
        "timeout": "0s",
        "idle_timeout": _seconds(front.silence_s),
        "retry_policy": {
            "retry_on": ",".join(RETRY_ON),
            "retriable_status_codes": [503],
            "num_retries": TRIES_MAX - 1,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": _PREVIOUS},
                }
            ],
            "host_selection_retry_max_attempts": 10,
        },
    }
    host = {
        "name": CLUSTER,
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": route}],
    }
    buffer = {"@type": f"{_FILTERS}.buffer.v3.Buffer", "max_request_bytes": BODY_BYTES_MAX}
    manager = {
        "@type": _HTTP,
        "stat_prefix": CLUSTER,
        "stream_idle_timeout": _seconds(front.silence_s),
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [
            {"name": "envoy.filters.http.buffer", "typed_config": buffer},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_FILTERS}.router.v3.Router"},
            },
        ],
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def _cluster(front: EnvoyFront) -> dict[str, object]:
    check = {
        "timeout": "1s",
        "interval": "0.5s",
        "no_traffic_interval": "0.5s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/ready"},
    }
    path = f"{front.folder.rstrip('/')}/{ENDPOINTS_FILE}"
    return {
        "name": CLUSTER,
        "type": "EDS",
        "connect_timeout": _seconds(front.connect_s),
        "lb_policy": "LEAST_REQUEST",
        "ignore_health_on_host_removal": True,
        "health_checks": [check],
        "circuit_breakers": {"thresholds": [dict.fromkeys(BREAKERS, UNDER_WAY_MAX)]},
        "eds_cluster_config": {
            "eds_config": {"path_config_source": {"path": path}, "resource_api_version": "V3"}
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _UPSTREAM,
                "common_http_protocol_options": {"idle_timeout": "30s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _address(host: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": port}}


def _seconds(value: float) -> str:
    return f"{value:g}s"


def _text(document: object) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
