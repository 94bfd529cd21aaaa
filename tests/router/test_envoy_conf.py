"""What is written for an Envoy in front, as text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bul.errors import ConfigError
from bul.router.envoy import ENDPOINTS_FILE, EnvoyFront, render_bootstrap, render_endpoints


def test_every_upstream_is_an_endpoint_once() -> None:
    urls = [
        "http://10.0.0.1:8000",
        "http://10.0.0.2:8000",
        "http://10.0.0.1:8000",
        "http://[::1]:1",
    ]
    document = json.loads(render_endpoints(urls))
    found = document["resources"][0]["endpoints"][0]["lb_endpoints"]
    addresses = [one["endpoint"]["address"]["socket_address"] for one in found]
    assert [(one["address"], one["port_value"]) for one in addresses] == [
        ("10.0.0.1", 8000),
        ("10.0.0.2", 8000),
        ("::1", 1),
    ]
    assert json.loads(render_endpoints([]))["resources"][0]["endpoints"][0]["lb_endpoints"] == []


def test_a_removed_host_goes_at_once_and_retries_go_elsewhere() -> None:
    document = json.loads(render_bootstrap(EnvoyFront(folder="/srv/bul/", listen="[::1]:80")))
    [cluster] = document["static_resources"]["clusters"]
    assert cluster["ignore_health_on_host_removal"] is True
    source = cluster["eds_cluster_config"]["eds_config"]["path_config_source"]
    assert source == {"path": f"/srv/bul/{ENDPOINTS_FILE}"}
    [listener] = document["static_resources"]["listeners"]
    assert listener["address"]["socket_address"] == {"address": "::1", "port_value": 80}
    assert "previous_hosts" in json.dumps(listener)


@pytest.mark.parametrize(
    "wrong", [{"listen": "nowhere"}, {"listen": "x:y"}, {"folder": "rel"}, {"folder": '/a"b'}]
)
def test_what_cannot_be_written_safely_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EnvoyFront(**wrong)


@pytest.mark.parametrize("url", ["https://x:1", "http://x", 'http://x":1', "http://x:1/a"])
def test_an_upstream_must_be_a_plain_url(url: str) -> None:
    with pytest.raises(ConfigError):
        render_endpoints([url])
