"""Two routers behind a real nginx: one is killed, the other goes on, and a new one knows enough."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bul.router.nginx import NginxFront, render
from bul.testing.nginx import free_port, running_nginx
from bul.testing.region_process import BulProcess, bul_process
from bul.testing.replica_set import ReplicaSet
from bul.testing.request_load import RequestLoad

pytestmark = pytest.mark.slow

FAST = {"BUL_TIMED_DECODE_TOKENS_PER_S": "1000", "BUL_TIMED_PREFILL_TOKENS_PER_S": "100000"}
TALKS = 24
BACK_WITHIN_S = 10.0


def talk(number: int) -> str:
    """One of a few long conversations, in an order that has nothing to do with who is next."""
    return f"conversation {number * 7 % TALKS}: " * 120


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[ReplicaSet]:
    async with contextlib.AsyncExitStack() as stack:
        found = ReplicaSet(tmp_path, stack, FAST)
        await found.start("a", "b", "c", "d")
        yield found


async def start_router(
    stack: contextlib.AsyncExitStack, replicas: ReplicaSet, folder: Path, port: int, *flags: str
) -> BulProcess:
    given = [part for url in replicas.urls for part in ("--replica", url)]
    arguments = ["route", "--port", str(port), "--log-format", "json", *given, *flags]
    router = await stack.enter_async_context(bul_process(arguments, folder))
    await router.wait_for("ready")
    return router


async def one_pass(url: str) -> float:
    """The cached share of each conversation asked once."""
    async with RequestLoad(url, clients=2, max_tokens=2, question=talk) as load:
        await load.more(TALKS)
    assert load.lost == []
    return load.cached_tokens / load.prompt_tokens


async def cached_shares(
    replicas: ReplicaSet, folder: Path, *flags: str
) -> tuple[float, float, RequestLoad]:
    """The cached share before one of two routers is killed, and of the first questions that its
    successor alone gets; and the load that ran through nginx meanwhile.
    """
    ports = [free_port(), free_port()]
    front, conf = free_port(), folder / "nginx.conf"
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    listen = f"127.0.0.1:{front}"
    conf.write_text(render(NginxFront(upstreams=urls, listen=listen, folder=str(folder))))
    async with contextlib.AsyncExitStack() as stack:
        first = await start_router(stack, replicas, folder, ports[0], *flags)
        await start_router(stack, replicas, folder, ports[1], *flags)
        nginx = await stack.enter_async_context(running_nginx(conf, front))
        async with RequestLoad(nginx.url, clients=4, max_tokens=2, question=talk) as load:
            await load.more(4 * TALKS)
            before = await one_pass(nginx.url)
            first.send(signal.SIGKILL)
            await first.ended()
            await load.more(2 * TALKS)
        killed_s = time.monotonic()
        await start_router(stack, replicas, folder, ports[0], *flags)
        after = await one_pass(urls[0])
        assert time.monotonic() - killed_s < BACK_WITHIN_S
    return before, after, load


async def test_one_is_killed_and_the_next_one_knows_what_lies_where(
    replicas: ReplicaSet, tmp_path: Path
) -> None:
    before, after, load = await cached_shares(replicas, tmp_path)
    assert load.lost == []
    assert load.answers >= 6 * TALKS
    assert after >= 0.95 * before


async def test_the_control_a_router_that_follows_nobody_begins_blind(
    replicas: ReplicaSet, tmp_path: Path
) -> None:
    before, after, load = await cached_shares(replicas, tmp_path, "--no-block-events")
    assert load.lost == []
    assert after < 0.95 * before
