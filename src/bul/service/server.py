"""Runs the application under uvicorn (httptools, uvloop) and ends it without dropping an answer.

Refuses to bind where others could reach it without a key, and to die in mid-stream: on SIGTERM
or SIGINT new work gets 503, running answers get `drain_s` seconds, then the process ends. The
socket stays open meanwhile, so that a router reads "draining" instead of a refused connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping

import uvicorn
import uvloop

from bul.config import ServeConfig
from bul.errors import ConfigError
from bul.inference.contract import Runner
from bul.service.app import ReplicaApp
from bul.service.auth import check_bind
from bul.service.join import Joiner
from bul.service.protocol import BoundedProtocol

__all__ = ["ReplicaServer", "bind", "run"]

KEEP_ALIVE_S = 75
"""Longer than a router keeps an idle connection, so that the router closes first."""
BACKLOG = 1024
TICK_S = 1.0
FLUSH_S = 2
"""For answers that are written but not yet read when everything else has ended."""


def bind(config: ServeConfig, keys: Mapping[str, str]) -> socket.socket:
    """A bound socket that does not listen yet. Raises ConfigError: not allowed, taken, no host."""
    check_bind(config.host, keys)
    address = f"{config.host}:{config.port}"
    try:
        found = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, where = found[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot use host {config.host!r}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            hint = "choose another one with --port, or --port 0 for any free one"
            raise ConfigError(f"{address} is taken", hint=hint) from error
        raise ConfigError(f"cannot bind {address}: {error.strerror}") from error
    bound.setblocking(False)
    return bound


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again and end with their exit code.

    And waits for its end instead of asking for it ten times a second.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._ending.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # keeps the Date header right
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close idle connections now, busy ones when their answer is out or `FLUSH_S` is over."""
        for server in self.servers:
            server.close()
        for bound in sockets or ():
            bound.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._until_idle()
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # its task sees a client that left
        await self._until_idle()

    async def _until_idle(self) -> None:
        state = self.server_state
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                while state.connections or state.tasks:  # noqa: ASYNC110 - two sets, no event
                    await asyncio.sleep(0.005)


class ReplicaServer:
    """One application on one bound socket."""

    def __init__(self, app: ReplicaApp, bound: socket.socket) -> None:
        host, port = bound.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._app = app
        self._socket = bound
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=FLUSH_S,
            )
        )
        app.connections = lambda: len(self._uvicorn.server_state.connections)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when connections are taken; the application may still be loading."""
        self._serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._socket]))
        while not self._uvicorn.started and not self._serving.done():  # noqa: ASYNC110 - a flag
            await asyncio.sleep(0.001)

    async def stop(self, runner: Runner | None, drain_s: float) -> None:
        """Refuse new work, let answers finish, close everything. Idempotent enough for tests."""
        self._app.start_draining()
        if runner is not None:
            await runner.close(drain_s)
        self._uvicorn.end()
        if self._serving is not None:
            await self._serving


def run(
    app: ReplicaApp,
    bound: socket.socket,
    load: Callable[[], Awaitable[Runner]],
    *,
    drain_s: float,
    on_ready: Callable[[str, Runner], None],
    joiner: Joiner,
) -> None:
    """Serve until SIGTERM or SIGINT; a second one does not wait. Raises what `load` raises.

    on_ready gets the URL and the runner once requests are taken; so do the joiner's routers, and
    they hear of the end before anybody is refused.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_run(ReplicaServer(app, bound), app, load, drain_s, on_ready, joiner))


async def _run(
    server: ReplicaServer,
    app: ReplicaApp,
    load: Callable[[], Awaitable[Runner]],
    drain_s: float,
    on_ready: Callable[[str, Runner], None],
    joiner: Joiner,
) -> None:
    stops: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stops.put_nowait, number)
    await server.start()
    runner: Runner | None = None
    try:
        runner = await _unless_stopped(load(), stops)
        if runner is not None:
            app.attach(runner)
            on_ready(server.url, runner)
            joiner.start(server.url)
            await stops.get()
    finally:
        await joiner.leave()
        stopping = asyncio.create_task(server.stop(runner, drain_s))
        impatient = asyncio.create_task(stops.get())
        await asyncio.wait((stopping, impatient), return_when=asyncio.FIRST_COMPLETED)
        if impatient.done():
            await server.stop(runner, 0.0)
        impatient.cancel()
        await stopping


async def _unless_stopped(loading: Awaitable[Runner], stops: asyncio.Queue[int]) -> Runner | None:
    """The runner, or None when a signal came before it was loaded."""
    load_task = asyncio.ensure_future(loading)
    stop_task = asyncio.create_task(stops.get())
    await asyncio.wait((load_task, stop_task), return_when=asyncio.FIRST_COMPLETED)
    if not load_task.done():
        load_task.cancel()
        return None
    stop_task.cancel()
    return load_task.result()
