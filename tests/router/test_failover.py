"""Replicas that die, come back, refuse, hang or lie; each with the control that fails."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bul.router.app import Router
from bul.router.health import TIMED_OUT, Prober
from bul.router.replica import DOWN, READY, UNREADY, Replica
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import answering, raw, silent, streaming
from bul.testing.waiting import until


async def _load(net: RouterNet, router: Router, *, clients: int, each: int) -> list[int]:
    """Statuses of `clients * each` requests; a broken connection counts as 0."""

    async def one() -> list[int]:
        statuses = []
        client = await net.client(router)
        for _ in range(each):
            await client.send(post())
            try:
                statuses.append((await client.answer())[0])
            except (asyncio.IncompleteReadError, OSError):
                statuses.append(0)
                client = await net.client(router)
        client.close()
        return statuses

    results = await asyncio.gather(*(one() for _ in range(clients)))
    return [status for statuses in results for status in statuses]


async def _kill_one_under_load(net: RouterNet, **settings: Any) -> tuple[Router, list[int]]:
    doomed = await net.upstream(answering(b"a", delay_s=0.1))
    other = await net.upstream(answering(b"b", delay_s=0.1))
    router = await net.router(doomed, other, **settings)
    load = asyncio.create_task(_load(net, router, clients=40, each=8))
    await until(lambda: router.completed > 100 and router.replicas[0].in_flight > 10)
    await doomed.kill()
    return router, await load


async def test_a_killed_replica_costs_no_request(net: RouterNet) -> None:
    router, statuses = await _kill_one_under_load(net, retries_at_least=40)
    assert len(statuses) == 320
    assert set(statuses) == {200}
    assert router.retries > 0


async def test_without_retries_a_killed_replica_costs_requests(net: RouterNet) -> None:
    """The control: the harness does kill requests."""
    _, statuses = await _kill_one_under_load(net, retry_share=0.0, retries_at_least=0)
    assert 502 in statuses


async def test_a_replica_that_comes_back_is_used_again(net: RouterNet) -> None:
    upstreams = [await net.upstream(answering(b"ok")) for _ in range(2)]
    router = await net.router(*upstreams)
    await upstreams[0].kill()
    await until(lambda: router.replicas[0].state == DOWN)
    assert len(router.ready) == 1
    await upstreams[0].start()
    await until(lambda: len(router.ready) == 2)
    upstreams[0].requests.clear()
    for _ in range(4):
        assert (await net.ask(router, post()))[0] == 200
    assert len(upstreams[0].requests) == 2


async def test_a_refused_connection_takes_a_replica_out_at_once(net: RouterNet) -> None:
    upstreams = [await net.upstream(answering(b"ok")) for _ in range(2)]
    router = await net.router(*upstreams, probe_interval_s=60.0)
    await upstreams[0].kill()
    for _ in range(4):
        assert (await net.ask(router, post()))[0] == 200
    assert [replica.state for replica in router.replicas] == [DOWN, READY]


async def test_a_kept_connection_that_was_closed_costs_nothing_from_the_budget(
    net: RouterNet,
) -> None:
    served = 0

    async def close_after_one(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        if served == 2:
            raise ConnectionResetError
        await answering(b"ok")(request, writer)

    router = await net.router(
        await net.upstream(close_after_one), retry_share=0.0, retries_at_least=0
    )
    client = await net.client(router)
    statuses = []
    for idle_s in (0.0, 0.6, 0.0):
        await asyncio.sleep(idle_s)
        await client.send(post())
        statuses.append((await client.answer())[0])
    assert statuses == [200] * 3
    assert router.retries == 0


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 O", b"gibberish\r\n\r\n"])
async def test_what_one_replica_spoils_another_one_answers(net: RouterNet, answer: bytes) -> None:
    bad = await net.upstream(raw(answer))
    good = await net.upstream(answering(b"ok"))
    router = await net.router(bad, good)
    assert {(await net.ask(router, post()))[2] for _ in range(4)} == {b"ok"}
    assert bad.requests


async def test_three_spoilt_answers_in_a_row_eject_a_replica_that_says_it_is_ready(
    net: RouterNet,
) -> None:
    bad = await net.upstream(raw(b"gibberish\r\n\r\n"))
    router = await net.router(bad, await net.upstream(answering(b"ok")))
    while len(bad.requests) < 3:
        assert (await net.ask(router, post()))[0] == 200
    assert router.replicas[0].state == DOWN
    for _ in range(10):
        await net.ask(router, post())
    assert len(bad.requests) == 3


async def test_a_503_is_tried_elsewhere_and_passed_on_when_there_is_no_elsewhere(
    net: RouterNet,
) -> None:
    draining = await net.upstream(answering(b"draining", status=b"503 Service Unavailable"))
    other = await net.upstream(answering(b"ok"))
    router = await net.router(draining, other)
    assert {(await net.ask(router, post()))[2] for _ in range(4)} == {b"ok"}
    router.set_replicas([draining.url])
    await until(lambda: len(router.ready) == 1)
    assert (await net.ask(router, post()))[::2] == (503, b"draining")


async def test_a_stream_that_has_begun_is_not_begun_again(net: RouterNet) -> None:
    upstreams = [await net.upstream(streaming([b"data: 1\n\n"], die=True)) for _ in range(2)]
    router = await net.router(*upstreams)
    client = await net.client(router)
    await client.send(post())
    assert b"stream_broken" in await client.rest()
    assert sum(len(upstream.requests) for upstream in upstreams) == 1


async def test_a_replica_that_says_nothing_is_given_up_for_another_one(net: RouterNet) -> None:
    mute = await net.upstream(silent)
    good = await net.upstream(answering(b"ok"))
    router = await net.router(mute, good, response_timeout_s=0.3)
    assert {(await net.ask(router, post()))[2] for _ in range(2)} == {b"ok"}
    assert mute.requests
    await until(lambda: mute.hung_up == len(mute.requests))
    assert router.replicas[0].failures == len(mute.requests)


async def test_a_lone_replica_that_says_nothing_is_a_504(net: RouterNet) -> None:
    router = await net.router(await net.upstream(silent), response_timeout_s=0.3)
    status, _, body = await net.ask(router, post())
    assert status == 504
    assert json.loads(body)["error"]["type"] == "server_error"


async def test_a_removed_replica_finishes_what_it_has_and_gets_nothing_new(
    net: RouterNet,
) -> None:
    leaving = await net.upstream(answering(b"last", delay_s=0.2))
    router = await net.router(leaving)
    client = await net.client(router)
    await client.send(post())
    await until(lambda: leaving.in_flight == 1)
    staying = await net.upstream(answering(b"ok"))
    router.set_replicas([staying.url])
    await until(lambda: len(router.ready) == 1)
    assert (await net.ask(router, post()))[2] == b"ok"
    assert (await client.answer())[2] == b"last"
    assert len(leaving.requests) == 1


async def test_a_server_without_a_ready_page_is_a_replica_too(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"), ready=False, not_ready=b"404 Not Found")
    router = await net.router(upstream)
    assert (await net.ask(router, post()))[2] == b"ok"


def test_one_slow_probe_is_a_hiccup_and_two_are_a_hang() -> None:
    replica = Replica("http://127.0.0.1:1", lambda: None)
    prober = Prober(replica, interval_s=1, timeout_s=1, now_s=lambda: 0.0)
    prober.saw(READY)
    prober.saw(TIMED_OUT)
    assert replica.state == READY
    prober.saw(TIMED_OUT)
    assert replica.state == DOWN
    prober.saw(READY)
    assert replica.state == READY
    prober.saw(UNREADY)
    assert replica.state == UNREADY


def test_an_ejection_ends_with_the_first_good_probe_after_its_time_and_doubles() -> None:
    now_s = 0.0
    replica = Replica("http://127.0.0.1:1", lambda: None)
    prober = Prober(replica, interval_s=1, timeout_s=1, now_s=lambda: now_s)
    prober.saw(READY)
    for until_s in (2.0, 6.0):
        prober.eject()
        assert replica.ejected_until_s == until_s
        now_s = until_s - 0.1
        prober.saw(READY)
        assert replica.state == DOWN
        now_s = until_s
        prober.saw(READY)
        assert replica.state == READY
