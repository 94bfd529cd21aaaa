"""Ten thousand connections that say nothing, and one client who does."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from bul.router.app import Router
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import answering
from bul.testing.waiting import until

SILENT = 10_000
AT_ONCE = 500
SPARE_FILES = 500
WITHIN_S = 20.0
"""For all of it, on two busy cores."""


@contextlib.contextmanager
def _many_files() -> Iterator[int]:
    """How many connections there may be, both ends of each being ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield min(SILENT, (hard - SPARE_FILES) // 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _connect(router: Router, many: int) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    where = "127.0.0.1", int(router.url.rpartition(":")[2])
    opened: list[socket.socket] = []
    while len(opened) < many:
        batch = [socket.socket() for _ in range(min(AT_ONCE, many - len(opened)))]
        for one in batch:
            one.setblocking(False)
        opened += batch
        await asyncio.gather(*(loop.sock_connect(one, where) for one in batch))
    return opened


@pytest.mark.slow
@pytest.mark.security
async def test_ten_thousand_silent_connections_are_ended_and_a_live_client_is_served(
    net: RouterNet,
) -> None:
    upstream = await net.upstream(answering(b"ok"))
    with _many_files() as many:
        router = await net.router(upstream, header_timeout_s=4.0, connections_max=many + 16)
        opened: list[socket.socket] = []
        try:
            async with asyncio.timeout(WITHIN_S):
                opened = await _connect(router, many)
                await until(lambda: router.clients > many // 2)
                live = await net.client(router)
                while router.slow_clients < many:
                    await live.send(post())
                    assert (await live.answer())[0] == 200
                    await asyncio.sleep(0.01)
                await until(lambda: router.clients == 1)
        finally:
            for one in opened:
                one.close()
    assert router.turned_away == 0


@pytest.mark.slow
@pytest.mark.security
async def test_the_control_without_a_deadline_they_leave_no_room(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream, header_timeout_s=600.0, connections_max=1000)
    opened = await _connect(router, 1000)
    try:
        await until(lambda: router.clients == 1000)
        client = await net.client(router)
        assert (await client.answer())[0] == 503
        assert router.slow_clients == 0
        assert router.turned_away == 1
    finally:
        for one in opened:
            one.close()
