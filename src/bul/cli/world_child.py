"""One child of `bul up --regions`: a `bul` process that is started again when it dies.

Refuses to let it outlive us: the kernel kills it with its parent, and `stop` waits for its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from bul.scaling.drivers import leash

__all__ = ["Child"]

PAUSE_S = 0.5
PAUSE_S_MAX = 10.0
STOP_S = 40.0
LINE_BYTES_MAX = 1 << 20

Told = Callable[[dict[str, Any]], None]


class Child:
    """`bul ARGUMENTS`. told: called with each of its events, as a dict with "event" and "text"."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], told: Told) -> None:
        self._arguments = list(arguments)
        self._environ = dict(environ)
        self._told = told
        self._process: asyncio.subprocess.Process | None = None
        self._running: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        """It said so; cleared when it dies."""
        self.pid = 0

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help in time."""
        if self._running is None:
            return
        running, self._running = self._running, None
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await process.wait()
        self.kill()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _run(self) -> None:
        pause_s = PAUSE_S
        while True:
            started_s = asyncio.get_running_loop().time()
            code = await self._live()
            self.ready.clear()
            if self._running is None:
                return
            lived_s = asyncio.get_running_loop().time() - started_s
            pause_s = PAUSE_S if lived_s > PAUSE_S_MAX else min(2 * pause_s, PAUSE_S_MAX)
            text = f"bul {self._arguments[0]} ended with {code}; again in {pause_s:.1f} s"
            self._told({"event": "child_died", "text": text, "exit_code": code})
            await asyncio.sleep(pause_s)

    async def _live(self) -> int:
        process = self._process = await asyncio.create_subprocess_exec(
            *_leashed(),
            sys.executable,
            "-m",
            "bul",
            *self._arguments,
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LINE_BYTES_MAX,
        )
        self.pid = process.pid
        assert process.stdout is not None
        async for line in process.stdout:
            try:
                said = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.MsgspecError:
                continue
            if said.get("event") == "ready":
                self.ready.set()
            self._told(said)
        return await process.wait()


def _leashed() -> list[str]:
    return [sys.executable, "-I", "-S", str(leash.__file__), str(os.getpid())]
