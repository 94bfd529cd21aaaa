"""`[tracing]`: where spans go, how many traces are taken, and what may wait.

Refuses values out of range with a message that names the field and the legal range, and to send
spans over a network in the clear.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import urllib.parse

from bul.config.checks import HEADER_NAME, in_range, whole
from bul.errors import ConfigError

__all__ = ["TracingConfig"]

HINT = "http://127.0.0.1:4318/v1/traces is a collector's own default"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TracingConfig:
    """`[tracing]`: OpenTelemetry traces of requests; needs the extra: pip install 'bul[tracing]'.

    endpoint: a collector's URL for OTLP over HTTP, "" for no tracing; the only address that spans
    are sent to. Beyond loopback it must be https. headers_secret: "NAME=VALUE,..." sent with them.
    sample_share: of the requests that come without a traceparent of their own. service_name: as
    collectors show it, with -router or -replica behind. queue_spans_max: that wait to be sent; more
    are dropped and counted, and no request waits. interval_s: between two sendings. timeout_s: of
    one.
    """

    endpoint: str = ""
    headers_secret: str = ""
    sample_share: float = 0.01
    service_name: str = "bul"
    queue_spans_max: int = 8192
    interval_s: float = 1.0
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if self.endpoint:
            _check_endpoint(self.endpoint)
        _ = self.headers
        in_range("sample_share", self.sample_share, 0, 1)
        if not (0 < len(self.service_name) <= 100 and self.service_name.isprintable()):
            raise ConfigError(f"service_name must have 1 to 100 characters: {self.service_name!r}")
        whole("queue_spans_max", self.queue_spans_max, 1, 1 << 20)
        in_range("interval_s", self.interval_s, 0.01, 60)
        in_range("timeout_s", self.timeout_s, 0.05, 60)

    @property
    def headers(self) -> dict[str, str]:
        """What `headers_secret` says. Raises ConfigError, without quoting it."""
        found: dict[str, str] = {}
        for pair in filter(None, self.headers_secret.split(",")):
            name, equals, value = (part.strip() for part in pair.partition("="))
            if not (equals and HEADER_NAME.fullmatch(name) and value.isascii()):
                raise ConfigError("headers_secret must be NAME=VALUE,...")
            if not value.isprintable():
                raise ConfigError("headers_secret must hold printable characters")
            found[name] = value
        return found


def _check_endpoint(text: str) -> None:
    try:
        url = urllib.parse.urlsplit(text)
        host, _ = url.hostname, url.port  # the port is checked when it is read
    except ValueError as error:
        raise ConfigError(f"endpoint must be a URL, was {text!r}: {error}", hint=HINT) from None
    odd = url.username is not None or url.query or url.fragment or not text.isprintable()
    if url.scheme not in ("http", "https") or not host or odd:
        raise ConfigError(f"endpoint must be http(s)://HOST:PORT/PATH, was {text!r}", hint=HINT)
    if url.scheme == "http" and not _is_loopback(host):
        raise ConfigError(f"endpoint beyond loopback must be https://, was {text!r}", hint=HINT)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
