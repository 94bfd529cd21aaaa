"""`[tracing]`: where spans may go, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bul.config import TracingConfig, is_secret, load_settings
from bul.errors import ConfigError


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "http://127.0.0.1:4318/v1/traces",
        "http://localhost:4318/v1/traces",
        "http://[::1]:4318/v1/traces",
        "http://127.3.2.1/v1/traces",
        "https://collector.example/v1/traces",
        "https://10.0.0.8:4318/v1/traces",
    ],
)
def test_spans_go_to_loopback_or_over_tls(endpoint: str) -> None:
    assert TracingConfig(endpoint=endpoint).endpoint == endpoint


@pytest.mark.security
@pytest.mark.parametrize(
    "endpoint",
    [
        "http://10.0.0.8:4318/v1/traces",
        "http://collector.example/v1/traces",
        "http://localhost.example/v1/traces",
        "http://127.0.0.1@collector.example/v1/traces",
        "https://user:word@collector.example/v1/traces",
        "https://collector.example/v1/traces?key=1",
        "https://collector.example/v1/traces#a",
        "https:///v1/traces",
        "https://collector.example:99999/v1/traces",
        "https://collector.example/\n",
        "ftp://127.0.0.1/",
        "127.0.0.1:4318",
    ],
)
def test_anything_else_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        TracingConfig(endpoint=endpoint)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sample_share": 1.01}, "sample_share"),
        ({"sample_share": -0.01}, "sample_share"),
        ({"service_name": ""}, "service_name"),
        ({"service_name": "a\nb"}, "service_name"),
        ({"queue_spans_max": 0}, "queue_spans_max"),
        ({"interval_s": 0.0}, "interval_s"),
        ({"timeout_s": 61.0}, "timeout_s"),
        ({"headers_secret": "no-equals-sign"}, "headers_secret"),
        ({"headers_secret": "a b=c"}, "headers_secret"),
        ({"headers_secret": "a=b\r\nc: d"}, "headers_secret"),
    ],
)
def test_what_is_out_of_range_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        TracingConfig(**changes)


def test_headers_are_a_secret_and_an_error_does_not_quote_them() -> None:
    assert TracingConfig(headers_secret="a=b, c=d=e").headers == {"a": "b", "c": "d=e"}
    assert is_secret("tracing.headers_secret")
    with pytest.raises(ConfigError) as caught:
        TracingConfig(headers_secret="canary")
    assert "canary" not in str(caught.value)


def test_it_comes_from_the_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "bul.toml"
    file.write_text('[tracing]\nendpoint = "http://127.0.0.1:4318/v1/traces"\n')
    settings = load_settings(file, environ={"BUL_TRACING_SAMPLE_SHARE": "0.5"})
    assert settings.tracing.endpoint.endswith(":4318/v1/traces")
    assert settings.tracing.sample_share == 0.5
    assert load_settings(environ={}).tracing.endpoint == ""
