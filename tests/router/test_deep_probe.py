"""A replica that answers probes while its engine stands still is found by asking for a token."""

from __future__ import annotations

import asyncio

import pytest

from bul.router.replica import DOWN, READY
from bul.testing.replica import running_replica
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import Behaviour, answering
from bul.testing.waiting import until


def _deep(status: bytes) -> Behaviour:
    """Answers all but the deep probe well."""
    well, deep = answering(b"ok"), answering(b"{}", status=status)

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        is_deep = request.startswith(b"GET /health?deep=1 ")
        await (deep if is_deep else well)(request, writer)

    return behave


def _deep_probes(requests: list[bytes]) -> int:
    return sum(request.startswith(b"GET /health?deep=1 ") for request in requests)


async def test_a_replica_that_generates_nothing_is_taken_out(net: RouterNet) -> None:
    stuck = await net.upstream(_deep(b"503 Service Unavailable"))
    router = await net.router(
        stuck, await net.upstream(_deep(b"200 OK")), deep_probe_interval_s=0.05
    )
    await until(lambda: router.replicas[0].state == DOWN)
    assert router.replicas[1].state == READY
    stuck.requests.clear()
    for _ in range(4):
        assert (await net.ask(router, post()))[0] == 200
    assert [request for request in stuck.requests if request.startswith(b"POST")] == []


@pytest.mark.parametrize(
    ("status", "interval_s", "probes"),
    [(b"503 Service Unavailable", 0.0, 0), (b"404 Not Found", 0.05, 1), (b"200 OK", 0.05, 3)],
)
async def test_the_controls_nobody_asks_or_nobody_there_knows_or_all_is_well(
    net: RouterNet, status: bytes, interval_s: float, probes: int
) -> None:
    upstream = await net.upstream(_deep(status))
    router = await net.router(upstream, deep_probe_interval_s=interval_s)
    await until(lambda: _deep_probes(upstream.requests) >= probes)
    await asyncio.sleep(0.3)
    assert router.replicas[0].state == READY
    assert (_deep_probes(upstream.requests) > probes) is (probes == 3)


async def test_a_deep_probe_generates_one_token(net: RouterNet) -> None:
    async with running_replica() as replica:
        before = replica.runner.stats()["output_tokens_total"]
        await net.router(replica.url, deep_probe_interval_s=0.05)
        await until(lambda: replica.runner.stats()["output_tokens_total"] == before + 1)
