"""A real `bul` process for tests: started, its JSON events read, always ended.

Refuses fixed ports and the developer's own settings: ports are free ones, `BUL_*` is dropped,
and the process runs in a folder of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bul.config import environment
from bul.testing.waiting import eventually

__all__ = ["BulProcess", "bul_process", "clean_environment", "region_process"]

FREE_PORTS = {"BUL_ROUTE_PORT": "0", "BUL_SERVE_PORT": "0"}


def clean_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process without `BUL_*`, plus `changes`."""
    kept = {name: text for name, text in environment().items() if not name.startswith("BUL_")}
    return kept | dict(changes)


class BulProcess:
    """A running `bul ...`; `events` and `errors` grow while it runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, Any]] = []
        self.errors = ""
        self._readers = asyncio.gather(self._read_events(), self._read_errors())

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self, event: str) -> list[dict[str, Any]]:
        """The events of that name so far."""
        return [found for found in self.events if found["event"] == event]

    async def wait_for(self, event: str, deadline_s: float = 60.0) -> dict[str, Any]:
        """The first event of that name. Raises AssertionError with what was said instead."""

        def arrived() -> bool:
            assert self.said(event) or self._process.returncode is None, (
                f"ended with {self._process.returncode}: {self.errors} {self.events}"
            )
            return bool(self.said(event))

        await eventually(f"event {event} in {self.events}", arrived, deadline_s)
        return self.said(event)[0]

    def replica_pids(self) -> dict[str, int]:
        """Replica name -> process id of its last life."""
        return {found["replica"]: found["pid"] for found in self.said("replica_started")}

    def all_pids(self) -> list[int]:
        """Every process that it ever said to have started."""
        return [found["pid"] for found in self.said("replica_started")]

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, deadline_s: float = 60.0) -> int:
        """The exit code; negative for a signal."""
        async with asyncio.timeout(deadline_s):
            code = await self._process.wait()
            await self._readers
        return code

    async def close(self) -> None:
        """End it, whatever it does."""
        if self._process.returncode is None:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 20)
        if self._process.returncode is None:
            self._process.kill()
        await self.ended()

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            with contextlib.suppress(msgspec.DecodeError):
                self.events.append(msgspec.json.decode(line, type=dict[str, Any]))

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.errors += line.decode(errors="replace")


@contextlib.asynccontextmanager
async def bul_process(
    arguments: Sequence[str],
    folder: Path,
    environ: Mapping[str, str] | None = None,
    *,
    prefix: Sequence[str] = (),
) -> AsyncIterator[BulProcess]:
    """`bul ARGUMENTS` in `folder`, ended at the end of the block. prefix: runs it elsewhere."""
    process = await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        "-m",
        "bul",
        *arguments,
        cwd=folder,
        env=clean_environment(environ or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = BulProcess(process)
    try:
        yield running
    finally:
        await running.close()


@contextlib.asynccontextmanager
async def region_process(
    folder: Path, *flags: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[BulProcess]:
    """`bul up` on free ports, on the timed engine unless `flags` say otherwise; not yet ready."""
    engine = () if "--engine" in flags else ("--engine", "timed")
    arguments = ["up", "--log-format", "json", *engine, *flags]
    async with bul_process(arguments, folder, FREE_PORTS | dict(environ or {})) as running:
        yield running
