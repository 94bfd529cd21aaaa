"""The faults of `bench/faults.py` once more on the real model: 200 requests of each.

Refuses to be a measurement of speed: two replicas of a small model on shared cores, four clients.
What counts is that nobody loses a request, that a frozen replica keeps nobody for its thaw, that an
overload leaves goodput, and that a herd computes each full block once. One thread a replica where
the load must be more than they can do; short prompts, since such a thread computes some 80 to 250
tokens a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
from _fault_nginx import Behind, behind_nginx
from _fault_overload import Overload, overload

from bul.inference.model_file import MODEL_FILE
from bul.testing.region_process import BulProcess, bul_process, region_process
from bul.testing.request_load import RequestLoad
from bul.testing.router_net import RawClient, post
from bul.testing.waiting import eventually

__all__ = [
    "REQUESTS",
    "kill_one",
    "real_herd",
    "real_kill",
    "real_nginx",
    "real_overload",
    "real_rolling_restart",
    "real_sigstop",
]

REQUESTS = 200
MAX_TOKENS = 4
CLIENTS = 4
MODEL = Path(MODEL_FILE).stem
FROZEN_S = 4.0
CONTEXT = {"BUL_SERVE_CONTEXT_TOKENS": "1024"}
ONE_THREAD = CONTEXT | {"BUL_SERVE_THREADS": "1"}
REAL_OVERLOAD = Overload(
    slo_s=1.5, clients=8, max_tokens=MAX_TOKENS, model=MODEL, requests=REQUESTS, recovery_s=5.0
)
"""An answer takes 0.4 to 0.8 s when all slots are taken; beyond these, requests wait in line."""
FEW_SLOTS = {"BUL_SERVE_SLOTS": "2", "BUL_ROUTE_IN_FLIGHT_PER_SLOT": "1"}
HERD_TEXT = "a cold prompt that everybody has " * 31
"""Three blocks and a few tokens, so that the 200 tails are short."""
HERD_BLOCK_TOKENS = 64
HERD_ANSWER_S = 55.0
HERD_WAIT = {"BUL_ROUTE_QUEUE_DEADLINE_S": "55"}
"""So that who waits for the computed blocks is not turned away."""


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


async def real_nginx(folder: Path, *, ours: bool) -> RequestLoad:
    """Three replicas behind nginx; each restarts in place, then one comes and one goes."""
    behind = Behind(
        engine="embedded",
        environ=ONE_THREAD,
        model=MODEL,
        clients=CLIENTS,
        max_tokens=MAX_TOKENS,
        restarts=("a", "b", "c"),
        between=20,
        in_all=REQUESTS,
        start_s=120.0,
    )
    return await behind_nginx(folder, behind, ours=ours)


async def real_overload(folder: Path, environ: Mapping[str, str]) -> dict[str, object]:
    """Five times what two replicas of one thread can do, in some 200 requests."""
    flags = ("--engine", "embedded", "--replicas", "2")
    environ = ONE_THREAD | FEW_SLOTS | environ
    async with region_process(folder, *flags, environ=environ) as running:
        url = str((await running.wait_for("ready", 120))["url"])
        return await overload(url, REAL_OVERLOAD)


async def real_herd(folder: Path, environ: Mapping[str, str], slo_s: float) -> dict[str, object]:
    """200 equal cold prompts at once, one token each.

    computed_times: how often a full block of the prompt was computed, by what the answers say was
    cached; tail_tokens: of each prompt, beyond its full blocks.
    """
    flags = ("--engine", "embedded", "--replicas", "2")
    async with region_process(folder, *flags, environ=ONE_THREAD | HERD_WAIT | environ) as running:
        url = str((await running.wait_for("ready", 120))["url"])
        began_s = time.monotonic()
        answers = await asyncio.gather(*(_herd_answer(url) for _ in range(REQUESTS)))
        lasted_s = time.monotonic() - began_s
    usages = [(tokens, cached) for tokens, cached, _ in answers if tokens]
    assert usages, "nobody was answered"
    tokens = usages[0][0]
    full = tokens // HERD_BLOCK_TOKENS
    computed = sum(full - cached // HERD_BLOCK_TOKENS for _, cached in usages)
    latencies_s = [latency_s for tokens, _, latency_s in answers if tokens]
    return {
        "requests": len(answers),
        "failed": len(answers) - len(usages),
        "slowest_ms": round(max(latencies_s) * 1000, 1),
        "goodput_share": round(sum(took <= slo_s for took in latencies_s) / len(answers), 4),
        "slo_ms": slo_s * 1000,
        "computed_times": round(computed / full, 3),
        "full_blocks": full,
        "tail_tokens": tokens - full * HERD_BLOCK_TOKENS,
        "lasted_s": round(lasted_s, 1),
    }


async def _herd_answer(url: str) -> tuple[int, int, float]:
    """Tokens of the prompt, cached ones, seconds; no tokens if no whole answer came."""
    host, _, port = url.removeprefix("http://").partition(":")
    began_s = time.monotonic()
    message = {"role": "user", "content": HERD_TEXT}
    body = {"model": MODEL, "messages": [message], "max_tokens": 1, "temperature": 0}
    client: RawClient | None = None
    try:
        client = RawClient(*await asyncio.open_connection(host, int(port)))
        await client.send(post(msgspec.json.encode(body)))
        status, _, data = await client.answer(silent_s=HERD_ANSWER_S)
    except (OSError, EOFError, TimeoutError):
        return 0, 0, 0.0
    finally:
        if client is not None:
            client.close()
    if status != 200:
        return 0, 0, 0.0
    usage = msgspec.json.decode(data)["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return usage["prompt_tokens"], cached, time.monotonic() - began_s
