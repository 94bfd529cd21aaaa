"""One replica as the router sees it: its address, its state, what is under way, idle connections.

Refuses to judge: probes and failed connections set the state, `route.py` chooses.
"""

from __future__ import annotations

import typing
import urllib.parse
from collections.abc import Callable

from bul.blocks.text_chain import CHUNK_BYTES
from bul.errors import ConfigError
from bul.router.heads import KnownAnswers
from bul.router.hedge import Gaps, Percentile
from bul.router.limit import ConcurrencyLimit
from bul.router.prompt import BYTES_PER_TOKEN
from bul.router.residency import Residency

if typing.TYPE_CHECKING:
    from bul.router.upstream import UpstreamConnection

__all__ = ["DOWN", "IDLE_S", "READY", "REMOVED", "UNKNOWN", "UNREADY", "Replica", "address_of"]

UNKNOWN = "unknown"
READY = "ready"
UNREADY = "unready"
DOWN = "down"
REMOVED = "removed"

IDLE_CONNECTIONS_MAX = 256
IDLE_S = 4.0
"""We close idle connections before common servers do (5 s): no request shall meet a closed one."""


class Replica:
    """Mutable, one per URL. `in_flight` is counted at dispatch.

    is_silent: its last probes were neither answered nor refused. is_out: it is down, or was when it
    was removed: nobody believes that it will answer what it has under way.
    on_change: called when the state changed, so that the list of ready ones is made anew.
    residency_tokens: how much KV it probably keeps. limit: of requests under way.
    stream_gaps: those of all replicas, which this one's are like until it has shown its own.
    """

    __slots__ = (
        "answers",
        "authority",
        "ejected_until_s",
        "failures",
        "failures_in_a_row",
        "gaps",
        "header_line",
        "host",
        "idle",
        "in_flight",
        "is_out",
        "is_silent",
        "limit",
        "on_change",
        "port",
        "requests",
        "residency",
        "state",
        "url",
    )

    def __init__(
        self,
        url: str,
        on_change: Callable[[], None],
        *,
        residency_tokens: int = 0,
        limit: ConcurrencyLimit | None = None,
        stream_gaps: Percentile | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.host, self.port = address_of(self.url)
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = f"{shown}:{self.port}".encode()
        self.header_line = b"x-bul-replica: " + self.url.encode() + b"\r\n"
        self.state = UNKNOWN
        self.is_silent = self.is_out = False
        self.on_change = on_change
        self.in_flight = 0
        self.limit = limit or ConcurrencyLimit(256)
        self.gaps = Gaps(stream_gaps or Percentile())
        self.requests = 0
        self.failures = 0
        self.failures_in_a_row = 0
        self.ejected_until_s = 0.0
        self.answers = KnownAnswers()
        self.idle: list[UpstreamConnection] = []
        self.residency = Residency(residency_tokens * BYTES_PER_TOKEN // CHUNK_BYTES)

    @property
    def may_have_room_soon(self) -> bool:
        """Whether waiting for it makes sense: it is ready but full, nobody probed it yet, or it
        only does not answer.
        """
        return self.state in (READY, UNKNOWN) or (self.state == DOWN and self.is_silent)

    def set_state(self, state: str) -> None:
        """One that is down or removed loses its idle connections, which may lead to a process
        that is gone, and what it was believed to hold.
        """
        if self.state in (state, REMOVED):
            return
        self.state = state
        if state != REMOVED:
            self.is_out = state == DOWN
        if state in (DOWN, REMOVED):
            self.close_idle()
            self.residency.clear()
        self.on_change()

    def close_idle(self) -> None:
        idle, self.idle = self.idle, []
        for connection in idle:
            connection.close()

    def keep(self, connection: UpstreamConnection) -> None:
        """Take back a connection whose answer is complete."""
        if self.state in (DOWN, REMOVED) or len(self.idle) >= IDLE_CONNECTIONS_MAX:
            connection.close()
        else:
            self.idle.append(connection)

    def close_idle_since(self, since_s: float) -> None:
        """Close what has been idle since then or longer; the oldest ones are first."""
        while self.idle and self.idle[0].since_s <= since_s:
            self.idle.pop(0).close()

    def lost(self, connection: UpstreamConnection) -> None:
        """An idle connection was closed by the replica."""
        if connection in self.idle:
            self.idle.remove(connection)


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a replica's URL. Raises ConfigError."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    plain = parts.scheme == "http" and parts.hostname and not parts.path and not parts.query
    if not plain or port is None or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"replica {url!r} must look like http://127.0.0.1:8002")
    assert parts.hostname is not None
    return parts.hostname, port
