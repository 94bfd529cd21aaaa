"""The faults of `bench/faults.py` once more on the real model: 200 requests of each.

Refuses to be a measurement of speed: two replicas of a small model on shared cores, four clients.
What counts is that nobody loses a request, and that a frozen replica keeps nobody for its thaw.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from bul.inference.model_file import MODEL_FILE
from bul.testing.region_process import BulProcess, bul_process, region_process
from bul.testing.request_load import RequestLoad
from bul.testing.waiting import eventually

__all__ = ["REQUESTS", "kill_one", "real_kill", "real_rolling_restart", "real_sigstop"]

REQUESTS = 200
MAX_TOKENS = 4
CLIENTS = 4
MODEL = Path(MODEL_FILE).stem
FROZEN_S = 4.0
CONTEXT = {"BUL_SERVE_CONTEXT_TOKENS": "1024"}


async def kill_one(running: BulProcess, name: str) -> None:
    """SIGKILL, and wait until its next life is ready."""
    lives = len(running.said("replica_ready"))
    os.kill(running.replica_pids()[name], signal.SIGKILL)
    await eventually(f"{name} is back", lambda: len(running.said("replica_ready")) > lives, 60)


@contextlib.asynccontextmanager
async def _loaded(
    folder: Path, environ: Mapping[str, str] = CONTEXT
) -> AsyncIterator[tuple[BulProcess, RequestLoad]]:
    """A warm region under load; at the end it has had its 200 requests."""
    flags = ("--engine", "embedded", "--replicas", "2")
    async with region_process(folder, *flags, environ=environ) as running:
        url = str((await running.wait_for("ready", 120))["url"])
        async with RequestLoad(
            url, clients=CLIENTS, max_tokens=MAX_TOKENS, stream_every=2, model=MODEL
        ) as load:
            await load.more(60, 120)
            yield running, load
            if load.requests < REQUESTS:
                await load.more(REQUESTS - load.requests, 120)


async def real_kill(folder: Path) -> RequestLoad:
    """Each replica once."""
    async with _loaded(folder) as (running, load):
        for name in ("replica-0", "replica-1"):
            await kill_one(running, name)
            await load.more(20, 120)
    return load


async def real_rolling_restart(folder: Path) -> RequestLoad:
    """All of them, one after the other."""
    async with _loaded(folder) as (_, load), bul_process(["restart"], folder) as command:
        assert await command.ended() == 0, command.errors
    return load


async def real_sigstop(folder: Path) -> RequestLoad:
    """One stands still for four seconds."""
    async with _loaded(folder) as (running, load):
        pid = running.replica_pids()["replica-1"]
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(FROZEN_S)
        finally:
            os.kill(pid, signal.SIGCONT)
    return load
