"""The router over a network that stalls, resets and cuts; a fault proxy stands before a replica."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from bul.config import RouteConfig
from bul.router.app import Router
from bul.router.replica import DOWN
from bul.testing.router_net import RouterNet, post
from bul.testing.tcp_proxy import FaultProxy, Faults
from bul.testing.upstreams import answering
from bul.testing.waiting import until

SHORT_OF_THE_END = len(
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nfa"
)
LONG = 1 << 20


@pytest.fixture
async def proxy(net: RouterNet) -> AsyncIterator[FaultProxy]:
    upstream = await net.upstream(answering(b"far"))
    async with FaultProxy("127.0.0.1", upstream.port) as running:
        yield running


@contextlib.asynccontextmanager
async def routing(*urls: str) -> AsyncIterator[Router]:
    config = RouteConfig(
        replicas=urls,
        port=0,
        policy="round_robin",
        probe_interval_s=0.05,
        probe_timeout_s=0.1,
        response_timeout_s=1.0,
    )
    router = Router(config)
    await router.start()
    await until(lambda: len(router.ready) == len(urls))
    yield router
    await router.stop()


@pytest.mark.slow
async def test_a_half_open_replica_is_found_and_costs_no_request(
    net: RouterNet, proxy: FaultProxy
) -> None:
    near = await net.upstream(answering(b"near"))
    async with routing(proxy.url, near.url) as router:
        proxy.stall()
        answers = await asyncio.gather(*(net.ask(router, post()) for _ in range(8)))
        assert {answer[0] for answer in answers} == {200}
        assert {answer[2] for answer in answers} == {b"near"}
        await until(lambda: router.replicas[0].state == DOWN)
        proxy.heal()
        await until(lambda: len(router.ready) == 2)
        assert {(await net.ask(router, post()))[2] for _ in range(4)} == {b"near", b"far"}


@pytest.mark.slow
async def test_the_control_a_half_open_replica_alone_costs_its_requests(
    net: RouterNet, proxy: FaultProxy
) -> None:
    async with routing(proxy.url) as router:
        proxy.stall()
        assert (await net.ask(router, post()))[0] == 504


async def test_a_reset_before_the_first_byte_is_tried_elsewhere(
    net: RouterNet, proxy: FaultProxy
) -> None:
    near = await net.upstream(answering(b"near"))
    async with routing(proxy.url, near.url) as router:
        proxy.to_client = Faults(reset_at=0)
        for _ in range(6):
            assert (await net.ask(router, post()))[2] == b"near"


async def test_a_short_answer_that_is_cut_is_asked_for_again_elsewhere(
    net: RouterNet, proxy: FaultProxy
) -> None:
    near = await net.upstream(answering(b"near"))
    async with routing(proxy.url, near.url) as router:
        proxy.to_client = Faults(cut_at=SHORT_OF_THE_END)
        for _ in range(4):
            assert (await net.ask(router, post()))[::2] == (200, b"near")


async def test_a_long_answer_that_is_cut_is_never_passed_off_as_whole(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"x" * LONG))
    async with (
        FaultProxy("127.0.0.1", upstream.port) as proxy,
        routing(proxy.url) as router,
    ):
        proxy.to_client = Faults(cut_at=LONG)
        client = await net.client(router)
        await client.send(post())
        rest = await client.rest()
        assert b"content-length: %d" % LONG in rest
        assert rest.count(b"x") < LONG
