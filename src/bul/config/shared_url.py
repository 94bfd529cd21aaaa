"""The address of a Valkey or Redis, as one URL: a server, sentinels or a cluster.

Refuses what it does not know, without repeating a password.

    redis://[[user]:password@]host[:6379][/database]        rediss:// with TLS
    unix://[[user]:password@]/path/of/the/socket[?db=N]
    redis+sentinel://[user:password@]host[:26379],host/service[/database]
    redis+cluster://[user:password@]host[:6379],host        rediss+... with TLS
"""

from __future__ import annotations

import dataclasses
from typing import Literal
from urllib.parse import parse_qsl, unquote

from bul.errors import ConfigError

__all__ = ["SharedAddress", "parse_shared_url"]

Kind = Literal["single", "sentinel", "cluster"]
KINDS: dict[str, tuple[Kind, bool, int]] = {
    "redis": ("single", False, 6379),
    "rediss": ("single", True, 6379),
    "valkey": ("single", False, 6379),
    "valkeys": ("single", True, 6379),
    "redis+sentinel": ("sentinel", False, 26379),
    "rediss+sentinel": ("sentinel", True, 26379),
    "redis+cluster": ("cluster", False, 6379),
    "rediss+cluster": ("cluster", True, 6379),
}
"""Scheme -> what it is, TLS, default port."""
DATABASES_MAX = 1 << 16
EXAMPLES = (
    "such as redis://host:6379, unix:///path, redis+cluster://a,b,c or redis+sentinel://a/main"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SharedAddress:
    """nodes: (host, port) of the server, the sentinels, or some of the cluster. path: of a Unix
    socket, then without nodes. service: what the sentinels call the primary.
    """

    kind: Kind = "single"
    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    tls: bool = False
    username: str = ""
    password: str = dataclasses.field(default="", repr=False)
    database: int = 0
    service: str = ""

    @property
    def shown(self) -> str:
        """For people: without the password."""
        return self.path or ",".join(f"{host}:{port}" for host, port in self.nodes)


def parse_shared_url(url: str) -> SharedAddress:
    """Raises ConfigError; the message begins with "shared_url" and never holds a password."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {*KINDS, "unix"}:
        known = ", ".join([*KINDS, "unix"])
        raise ConfigError(f"shared_url must begin with one of {known}", hint=EXAMPLES)
    username, password, rest = _credentials(rest)
    if scheme == "unix":
        path, _, query = rest.partition("?")
        if not path.startswith("/"):
            raise ConfigError("shared_url names no absolute path of a socket", hint=EXAMPLES)
        return SharedAddress(
            path=unquote(path),
            username=username,
            password=password,
            database=_database(dict(parse_qsl(query)).get("db", "")),
        )
    kind, tls, port = KINDS[scheme]
    hosts, *parts = rest.rstrip("/").split("/")
    nodes = tuple(_node(text, port) for text in hosts.split(","))
    if kind == "single" and len(nodes) > 1:
        raise ConfigError("shared_url names several servers", hint=f"{scheme}+cluster:// is one")
    service = ""
    if kind == "sentinel":
        if not parts or not parts[0]:
            raise ConfigError("shared_url names no service of the sentinels", hint=EXAMPLES)
        service = unquote(parts.pop(0))
    if len(parts) > (kind != "cluster"):
        raise ConfigError("shared_url goes on behind its last part", hint=EXAMPLES)
    return SharedAddress(
        kind=kind,
        nodes=nodes,
        tls=tls,
        username=username,
        password=password,
        database=_database(parts[0] if parts else ""),
        service=service,
    )


def _credentials(rest: str) -> tuple[str, str, str]:
    """(user, password, the rest)."""
    head, at, tail = rest.rpartition("@")
    if not at:
        return "", "", rest
    username, _, password = head.partition(":")
    return unquote(username), unquote(password), tail


def _node(text: str, port: int) -> tuple[str, int]:
    host, colon, digits = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, digits = text, ""
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (digits.isdecimal() or (not colon or text.endswith("]"))):
        raise ConfigError(f"shared_url: {text!r} is no host:port", hint=EXAMPLES)
    number = int(digits) if digits else port
    if not 1 <= number <= 65535:
        raise ConfigError(f"shared_url: port {number} is not in [1, 65535]")
    return host, number


def _database(text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal() or int(text) >= DATABASES_MAX:
        raise ConfigError(f"shared_url: {text!r} is no number of a database")
    return int(text)
