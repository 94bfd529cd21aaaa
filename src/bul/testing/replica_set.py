"""`bul serve` processes on the timed or another engine, for what stands before several replicas.

Refuses to supervise: a replica that ends stays gone until it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path

from bul.testing.region_process import BulProcess, bul_process

__all__ = ["ReplicaSet"]


class ReplicaSet:
    """Replicas by name, in the folder of their test. environ: of each, such as rates. start_s:
    how long one may take to be ready.
    """

    def __init__(
        self,
        folder: Path,
        stack: contextlib.AsyncExitStack,
        environ: Mapping[str, str],
        *,
        engine: str = "timed",
        start_s: float = 60.0,
    ) -> None:
        self._environ = environ
        self._engine = engine
        self._start_s = start_s
        self._folder = folder
        self._stack = stack
        self._running: dict[str, BulProcess] = {}
        self._urls: dict[str, str] = {}

    @property
    def urls(self) -> list[str]:
        return list(self._urls.values())

    def pid(self, name: str) -> int:
        """Of its last life."""
        return self._running[name].pid

    async def start(self, *names: str) -> None:
        await asyncio.gather(*(self._start(name, port=0) for name in names))

    async def remove(self, name: str) -> None:
        """SIGTERM: it drains, then it is gone. Its URL stays until `forget`."""
        self._running[name].send(signal.SIGTERM)
        assert await self._running[name].ended() == 0

    def forget(self, name: str) -> None:
        """Drop its URL from `urls`."""
        self._urls.pop(name)

    async def restart_in_place(self, name: str) -> None:
        """As an init system does: stop, then start on the same port."""
        port = int(self._urls[name].rpartition(":")[2])
        await self.remove(name)
        await self._start(name, port=port)

    async def _start(self, name: str, port: int) -> None:
        arguments = ["serve", "--engine", self._engine, "--port", str(port)]
        arguments += ["--log-format", "json"]
        process = bul_process(arguments, self._folder, self._environ)
        self._running[name] = await self._stack.enter_async_context(process)
        self._urls[name] = (await self._running[name].wait_for("ready", self._start_s))["url"]
