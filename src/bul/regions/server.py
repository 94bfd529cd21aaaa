"""The peer endpoint's server: uvicorn on one socket, in whatever loop runs.

Refuses to take signals: who runs the loop decides when it ends. Binds where it is told to; that is
loopback unless somebody wrote another address into the configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from bul.errors import ConfigError

__all__ = ["PeerServer"]

STOP_S = 1
HEAD_BYTES_MAX = 16_384


class _Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class PeerServer:
    """`start`, then `url`; `stop`."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._server = _Quiet(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=STOP_S,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when connections are taken."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._serving.done():  # noqa: ASYNC110 - a flag
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Idempotent."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
            self._serving = None
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except OSError as error:
        message = f"cannot listen for other regions on {host}:{port}: {error.strerror}"
        raise ConfigError(message, hint="set another regions.port, or 0") from error
    bound.setblocking(False)
    return bound
