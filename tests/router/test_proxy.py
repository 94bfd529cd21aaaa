"""What passes through: bytes as they came, back-pressure, departures, and a router's own pages."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable

import pytest

from bul.config import RouteConfig
from bul.errors import ConfigError
from bul.router.app import Router
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import (
    STREAM_HEAD,
    Behaviour,
    answering,
    chunk,
    raw,
    silent,
    streaming,
)
from bul.testing.waiting import until

GET = b"GET /v1/models HTTP/1.1\r\nHost: bul\r\n\r\n"
EVENTS = [b'data: {"n":%d}\n\n' % number for number in range(50)] + [b"data: [DONE]\n\n"]


async def test_a_whole_answer_arrives_byte_for_byte_and_says_who_gave_it(net: RouterNet) -> None:
    body = bytes(range(256)) * 64
    upstream = await net.upstream(answering(body))
    router = await net.router(upstream)
    status, headers, received = await net.ask(router, post())
    assert (status, received) == (200, body)
    assert headers[b"x-bul-replica"] == upstream.url.encode()


async def test_an_answer_too_long_to_be_held_arrives_byte_for_byte(net: RouterNet) -> None:
    body = bytes(range(256)) * 8192
    router = await net.router(await net.upstream(answering(body)))
    assert (await net.ask(router, GET))[2] == body


async def test_a_stream_of_events_arrives_with_its_very_chunks(net: RouterNet) -> None:
    router = await net.router(await net.upstream(streaming(EVENTS, interval_s=0.001)))
    _, headers, body = await net.ask(router, post())
    assert body == b"".join(chunk(event) for event in EVENTS) + chunk(b"")
    assert headers[b"content-type"] == b"text/event-stream"


@pytest.mark.parametrize("step", [1, 2, 3, 7])
async def test_an_answer_cut_anywhere_on_its_way_arrives_whole(net: RouterNet, step: int) -> None:
    async def dribble(_request: bytes, writer: asyncio.StreamWriter) -> None:
        answer = STREAM_HEAD + chunk(b"data: a\n\n") + chunk(b"data: b\n\n") + chunk(b"")
        for start in range(0, len(answer), step):
            writer.write(answer[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)

    router = await net.router(await net.upstream(dribble))
    body = (await net.ask(router, post()))[2]
    assert body == chunk(b"data: a\n\n") + chunk(b"data: b\n\n") + chunk(b"")


async def test_the_first_event_does_not_wait_for_the_last(net: RouterNet) -> None:
    gate = asyncio.Event()

    async def gated(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b"data: first\n\n"))
        await gate.wait()
        writer.write(chunk(b"data: last\n\n") + chunk(b""))

    router = await net.router(await net.upstream(gated))
    client = await net.client(router)
    await client.send(post())
    assert b"first" in await asyncio.wait_for(client.reader.readuntil(b"\n\n\r\n"), 5)
    gate.set()
    assert b"last" in await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 5)


async def test_connections_are_kept_on_both_sides(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream, probe_interval_s=60.0)
    before = upstream.connections
    client = await net.client(router)
    for _ in range(20):
        await client.send(post())
        assert (await client.answer())[0] == 200
    assert upstream.connections - before == 1


async def test_answers_without_a_body_leave_the_connection_usable(net: RouterNet) -> None:
    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        if request.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        elif b"/none" in request:
            writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n")
        else:
            await answering(b"ok")(request, writer)

    router = await net.router(await net.upstream(behave), probe_interval_s=60.0)
    client = await net.client(router)
    for _ in range(2):
        await client.send(b"HEAD / HTTP/1.1\r\nHost: bul\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 5" in head
        await client.send(b"GET /none HTTP/1.1\r\nHost: bul\r\n\r\n")
        assert (await client.answer())[0] == 204
        await client.send(GET)
        assert (await client.answer())[2] == b"ok"


async def test_an_answer_that_ends_with_its_connection_does_so_here_too(net: RouterNet) -> None:
    async def until_close(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await writer.drain()
        writer.write_eof()
        await asyncio.Event().wait()

    router = await net.router(await net.upstream(until_close))
    client = await net.client(router)
    await client.send(GET)
    received = await client.rest()
    assert received.endswith(b"\r\n\r\nabc")
    assert b"connection: close\r\n" in received


async def test_a_client_that_leaves_ends_its_request_at_the_replica(net: RouterNet) -> None:
    upstream = await net.upstream(silent)
    router = await net.router(upstream)
    client = await net.client(router)
    await client.send(post())
    await until(lambda: upstream.in_flight == 1)
    assert upstream.hung_up == 0
    client.close()
    await until(lambda: upstream.hung_up == 1)
    await until(lambda: router.replicas[0].in_flight == 0)
    assert router.cancelled == 1


async def test_a_client_that_leaves_in_mid_stream_ends_it_at_the_replica(net: RouterNet) -> None:
    upstream = await net.upstream(streaming(EVENTS * 1000, interval_s=0.001))
    router = await net.router(upstream)
    client = await net.client(router)
    await client.send(post())
    await client.reader.readuntil(b"\n\n")
    client.close()
    await until(lambda: upstream.hung_up == 1)
    assert router.replicas[0].in_flight == 0


async def test_a_client_that_does_not_read_stops_the_replica_and_not_the_memory(
    net: RouterNet,
) -> None:
    sent = 0

    async def flood(_request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(STREAM_HEAD)
        for _ in range(1000):
            writer.write(chunk(b"x" * 65536))
            await writer.drain()
            sent += 65536
        writer.write(chunk(b""))

    router = await net.router(await net.upstream(flood))
    client = await net.client(router)
    await client.send(post())
    seen = -1
    while sent != seen:
        seen = sent
        await asyncio.sleep(0.2)
    assert sent < 40 << 20  # of 64 MiB; what is missing is more than the kernel's buffers hold
    received = 0
    while received < 1000 * 65536:
        received += len(await asyncio.wait_for(client.reader.read(1 << 20), 5))
    await until(lambda: router.completed == 1)


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi and more",
        b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\nhalf",
        b"HTTP/1.1 200 O",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 70_000,
        b"",
    ],
)
async def test_garbage_half_an_answer_or_none_is_a_502_that_says_so(
    net: RouterNet, garbage: bytes
) -> None:
    router = await net.router(await net.upstream(raw(garbage)))
    status, _, body = await net.ask(router, post())
    assert status == 502
    assert json.loads(body)["error"]["code"] == "replica_failed"
    assert router.replicas[0].failures == 1


BAD_CHUNK = raw(STREAM_HEAD + b"".join(chunk(event) for event in EVENTS[:3]) + b"zz\r\n")


@pytest.mark.parametrize(
    ("behaviour", "passed_on"),
    [
        (streaming(EVENTS[:3], die=True), 3),
        (BAD_CHUNK, 0),
        (raw(STREAM_HEAD + chunk(EVENTS[0]) + b"64\r\ndata: the middle of a chu"), 1),
        (raw(STREAM_HEAD + chunk(EVENTS[0]) + b"1"), 1),
    ],
)
async def test_a_stream_that_breaks_off_ends_with_an_error_event(
    net: RouterNet, behaviour: Behaviour, passed_on: int
) -> None:
    router = await net.router(await net.upstream(behaviour))
    client = await net.client(router)
    await client.send(post())
    received = await client.rest()
    assert received.endswith(b"0\r\n\r\n")
    last = received.split(b"data: ")[-1].partition(b"\n\n")[0]
    assert json.loads(last)["error"]["code"] == "stream_broken"
    assert received.count(b'"n"') == passed_on
    assert router.broken == 1


async def test_a_stream_that_ends_well_has_no_error_event(net: RouterNet) -> None:
    """The control of the one above."""
    router = await net.router(await net.upstream(streaming(EVENTS[:3])))
    assert b"error" not in (await net.ask(router, post()))[2]
    assert router.broken == 0


@pytest.mark.parametrize(
    "half",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
async def test_what_breaks_off_elsewhere_is_never_passed_off_as_whole(
    net: RouterNet, half: bytes
) -> None:
    router = await net.router(await net.upstream(raw(half)))
    client = await net.client(router)
    await client.send(post())
    with contextlib.suppress(ConnectionResetError):
        received = await client.rest()
        assert not received.endswith(b"0\r\n\r\n")
    assert client.reader.at_eof() or client.reader.exception() is not None


async def test_without_a_ready_replica_the_answer_is_503_with_retry_after(net: RouterNet) -> None:
    router = await net.router(await net.upstream(answering(b"ok"), ready=False), wait=False)
    await until(lambda: router.replicas[0].state == "unready")
    status, headers, body = await net.ask(router, post())
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert json.loads(body)["error"]["code"] == "no_replica"
    assert (await net.ask(router, b"GET /ready HTTP/1.1\r\nHost: bul\r\n\r\n"))[0] == 503
    assert (await net.ask(router, b"GET /health HTTP/1.1\r\nHost: bul\r\n\r\n"))[0] == 200


async def test_the_replicas_page_and_the_metrics_add_up(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream, block_events=False)
    await net.ask(router, post())
    _, _, body = await net.ask(router, b"GET /replicas HTTP/1.1\r\nHost: bul\r\n\r\n")
    assert json.loads(body)["replicas"] == [
        {
            "url": upstream.url,
            "state": "ready",
            "in_flight": 0,
            "limit": 256,
            "requests": 1,
            "failures": 0,
            "events": "off",
        }
    ]
    metrics = (await net.ask(router, b"GET /metrics HTTP/1.1\r\nHost: bul\r\n\r\n"))[2].decode()
    assert "bul_router_completed_total 1\n" in metrics
    assert f'bul_router_replica_requests_total{{replica="{upstream.url}"}} 1\n' in metrics


async def test_the_pages_that_add_up_all_tenants_ask_the_gate(net: RouterNet) -> None:
    def gate(headers: Iterable[tuple[bytes, bytes]]) -> bool:
        return (b"authorization", b"Bearer right") in headers

    router = Router(RouteConfig(port=0), gate=gate)
    await router.start()
    try:
        page = b"GET /metrics HTTP/1.1\r\nHost: bul\r\n%b\r\n"
        assert (await net.ask(router, page % b""))[0] == 401
        assert (await net.ask(router, page % b"Authorization: Bearer wrong\r\n"))[0] == 401
        assert (await net.ask(router, page % b"Authorization: Bearer right\r\n"))[0] == 200
        assert (await net.ask(router, b"GET /health HTTP/1.1\r\nHost: bul\r\n\r\n"))[0] == 200
    finally:
        await router.stop()


async def test_clients_that_say_nothing_or_little_are_ended_and_the_others_served(
    net: RouterNet,
) -> None:
    router = await net.router(
        await net.upstream(answering(b"ok")), header_timeout_s=0.3, body_timeout_s=0.3
    )
    mute = [await net.client(router) for _ in range(100)]
    slow = [await net.client(router) for _ in range(100)]
    lagging = [await net.client(router) for _ in range(100)]
    for client in slow:
        await client.send(b"GET / HTTP/1.1\r\nHost:")
    for client in lagging:
        await client.send(post()[:-1])
    assert (await net.ask(router, post()))[0] == 200
    for client in mute + slow + lagging:
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
        client.close()
    await until(lambda: router.clients == 0)
    assert router.slow_clients == 300


async def test_a_slow_client_within_its_time_is_served(net: RouterNet) -> None:
    """The control of the one above."""
    router = await net.router(await net.upstream(answering(b"ok")))
    client = await net.client(router)
    for start in range(0, len(post()), 10):
        await client.send(post()[start : start + 10])
        await asyncio.sleep(0.001)
    assert (await client.answer())[0] == 200


async def test_an_idle_connection_is_closed_after_its_time(net: RouterNet) -> None:
    router = await net.router(await net.upstream(answering(b"ok")), idle_timeout_s=0.1)
    client = await net.client(router)
    await client.send(GET)
    assert (await client.answer())[0] == 200
    assert await client.rest() == b""


async def test_connections_beyond_the_limit_are_told_so(net: RouterNet) -> None:
    router = await net.router(await net.upstream(answering(b"ok")), connections_max=2)
    kept = [await net.client(router) for _ in range(2)]
    await until(lambda: router.clients == 2)
    assert (await (await net.client(router)).rest()).startswith(b"HTTP/1.1 503 ")
    kept[0].close()
    await until(lambda: router.clients == 1)
    assert (await net.ask(router, post()))[0] == 200


async def test_a_stopping_router_lets_running_answers_finish(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"late", delay_s=0.2))
    router = await net.router(upstream)
    client = await net.client(router)
    await client.send(post())
    await until(lambda: upstream.in_flight == 1)
    await router.stop(drain_s=10)
    assert (await client.answer())[2] == b"late"


async def test_a_taken_port_is_a_setting_to_change(net: RouterNet) -> None:
    router = await net.router(await net.upstream(answering(b"ok")))
    port = int(router.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match="--port 0"):
        await Router(RouteConfig(port=port)).start()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:1", "https://a:1", "http://a", "http://a:1/v1", "http://a:x", "http://:1"]
)
async def test_a_replica_that_is_no_address_is_a_setting_to_change(url: str) -> None:
    router = Router(RouteConfig(port=0))
    with pytest.raises(ConfigError, match="must look like"):
        router.set_replicas([url])
    assert router.replicas == ()
