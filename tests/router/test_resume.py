"""Replicas that die or freeze in the middle of a stream: it goes on elsewhere, exactly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bul.config import ServeConfig, TimedConfig
from bul.inference.resume import HEADER, Sent, seal
from bul.router.app import Router
from bul.router.hedge import SEEN_MIN, Gaps, Percentile
from bul.router.replica import READY
from bul.router.stream_record import KEEP_BYTES_MAX, StreamRecord
from bul.testing.replica import INSTANT, ReplicaUnderTest, running_replica
from bul.testing.router_net import RouterNet, post
from bul.testing.tcp_proxy import FaultProxy, Faults
from bul.testing.upstreams import streaming
from bul.testing.waiting import until

CHAT: dict[str, Any] = {
    "model": "bul-timed",
    "messages": [{"role": "user", "content": "tell me a story " * 9}],
    "max_tokens": 16,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}
SLOW = TimedConfig(decode_tokens_per_s=100.0, prefill_tokens_per_s=1e6, block_bytes=256)
LONG_TOKENS = 60
"""Take a SLOW replica 0.6 s: so long have all streams of a test to begin before one ends."""
FROZEN_S = 3.0
"""Longer than such a stream and the wait before it is taken up elsewhere."""
PROBE_BYTES = 400
"""Of an answer to a probe, at most: cuts further on hit streams alone."""


class Pair:
    """Two replicas behind proxies that can spoil what they say, and a router over both."""

    def __init__(
        self,
        router: Router,
        replicas: list[ReplicaUnderTest],
        proxies: list[FaultProxy],
        net: RouterNet,
    ) -> None:
        self.router = router
        self.replicas = replicas
        self.proxies = proxies
        self.begun = 0
        """Answers whose first event has come to their client."""
        self._net = net

    async def forget_connections(self) -> None:
        """Offsets count from a connection's first byte, so each try gets a new one."""
        for replica in self.router.replicas:
            replica.close_idle()
        await until(lambda: not any(proxy.open_connections for proxy in self.proxies))

    def forgive(self) -> None:
        """Let no replica be ejected for what its proxy does."""
        for replica in self.router.replicas:
            replica.failures_in_a_row = 0
            replica.set_state(READY)

    async def ask(self, **more: Any) -> bytes:
        """The whole answer's chunks, joined; the connection's bytes if it broke off."""
        client = await self._net.client(self.router)
        await client.send(post(json.dumps(CHAT | more).encode(), extra=b"connection: close\r\n"))
        try:
            begin = await client.reader.readuntil(b"data: ")
        except asyncio.IncompleteReadError as error:
            return error.partial
        self.begun += 1
        return begin + await client.rest()

    async def ask_long(self, streams: int) -> list[asyncio.Task[bytes]]:
        """Streams of LONG_TOKENS, all of which have begun and none of which has ended."""
        wanted = self.begun + streams
        asked = [asyncio.create_task(self.ask(max_tokens=LONG_TOKENS)) for _ in range(streams)]
        await until(lambda: self.begun == wanted)
        assert not any(asking.done() for asking in asked)
        return asked


@contextlib.asynccontextmanager
async def _pair(
    net: RouterNet, timed: TimedConfig = INSTANT, **settings: Any
) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        proxies, replicas = [], []
        for _ in range(2):
            running = running_replica(ServeConfig(port=0), timed)
            replica = await stack.enter_async_context(running)
            replicas.append(replica)
            proxy = FaultProxy("127.0.0.1", replica.port)
            proxies.append(await stack.enter_async_context(proxy))
        options: Any = {"policy": "round_robin", "probe_interval_s": 60.0} | settings
        router = await net.router(*(proxy.url for proxy in proxies), **options)
        yield Pair(router, replicas, proxies, net)


def _events(answer: bytes) -> list[dict[str, Any]]:
    """All events but [DONE]; asserts that it came, once, and that the chunks ended."""
    assert answer.endswith(b"\r\n0\r\n\r\n"), answer[-100:]
    lines = [line for line in answer.split(b"\n") if line.startswith(b"data: ")]
    assert [line for line in lines if b"[DONE]" in line] == lines[-1:]
    return [json.loads(line[6:]) for line in lines[:-1]]


def _text(events: list[dict[str, Any]]) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def _plain(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what differs from run to run: times, and the stream's own name."""
    first = events[0]
    for event in events:
        assert (event["id"], event["created"]) == (first["id"], first["created"])
    drop = ("id", "created", "bul")
    return [{k: v for k, v in event.items() if k not in drop} for event in events]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 5}])
async def test_a_stream_cut_at_any_byte_comes_whole(net: RouterNet, sampling: Any) -> None:
    async with _pair(net) as pair:
        whole = await pair.ask(**sampling)
        events = _plain(_events(whole))
        broken = 0
        for cut_at in range(PROBE_BYTES, len(whole), 61):
            await pair.forget_connections()
            pair.proxies[cut_at % 2].to_client = Faults(cut_at=cut_at)
            before = pair.router.resumed
            answers = [_events(await pair.ask(**sampling)) for _ in range(2)]
            pair.proxies[cut_at % 2].heal()
            pair.forgive()
            assert [_plain(answer) for answer in answers] == [events, events]
            broken += pair.router.resumed - before
        assert broken >= (len(whole) - PROBE_BYTES) // 61 - 3
        assert pair.router.broken == 0


async def test_the_control_without_a_secret_a_cut_stream_ends_with_an_error(
    net: RouterNet,
) -> None:
    async with _pair(net) as pair:
        pair.router.resume_secret = None
        answers = await _cut_one(pair)
        assert sum(b"stream_broken" in answer for answer in answers) == 1
        assert sum(b"[DONE]" in answer for answer in answers) == 1


async def _cut_one(pair: Pair, **more: Any) -> list[bytes]:
    """Two streams, one of which breaks off in the middle."""
    pair.proxies[0].to_client = Faults(cut_at=1500)
    return [await pair.ask(**more) for _ in range(2)]


@pytest.mark.parametrize("more", [{"temperature": 1.0}, {"n": 2}])
async def test_what_is_random_ends_with_an_error_event_and_never_silently(
    net: RouterNet, more: Any
) -> None:
    async with _pair(net) as pair:
        answers = await _cut_one(pair, **more)
        assert sum(b"stream_broken" in answer for answer in answers) == 1
        assert all(answer.endswith(b"0\r\n\r\n") for answer in answers)
        assert pair.router.resumed == 0
        assert pair.router.broken == 1


async def test_a_stream_of_a_server_that_is_not_ours_ends_with_an_error_event(
    net: RouterNet,
) -> None:
    upstreams = [await net.upstream(streaming([b"data: {}\n\n"], die=True)) for _ in range(2)]
    router = await net.router(*upstreams, policy="round_robin")
    client = await net.client(router)
    await client.send(post(json.dumps(CHAT).encode()))
    assert b"stream_broken" in await client.rest()
    assert sum(len(upstream.requests) for upstream in upstreams) == 1


async def test_a_stop_string_across_the_cut_is_still_seen(net: RouterNet) -> None:
    async with _pair(net) as pair:
        text = _text(_events(await pair.ask()))
        stop = text[38:42]  # words are four characters: the string begins within one
        whole = _events(await pair.ask(stop=stop))
        assert _text(whole) == text[: text.find(stop)]
        for cut_at in range(PROBE_BYTES + 1200, PROBE_BYTES + 3400, 111):
            await pair.forget_connections()
            pair.proxies[0].to_client = Faults(cut_at=cut_at)
            answers = [_events(await pair.ask(stop=stop)) for _ in range(2)]
            pair.forgive()
            assert [_plain(answer) for answer in answers] == [_plain(whole)] * 2


async def _stall(net: RouterNet, delay_min_s: float) -> tuple[list[float], Router, bool]:
    """How long eight streams take, when one of two replicas falls silent in the middle for
    FROZEN_S; and whether all were whole.
    """
    async with _pair(net, SLOW, hedge_delay_min_s=delay_min_s, retries_at_least=40) as pair:
        whole = _text(_events(await pair.ask(max_tokens=LONG_TOKENS)))
        await asyncio.gather(*(pair.ask() for _ in range(2 * SEEN_MIN)))
        began_s = time.monotonic()

        async def timed(asked: asyncio.Task[bytes]) -> tuple[float, bool]:
            answer = await asked
            return time.monotonic() - began_s, _text(_events(answer)) == whole

        asked = await pair.ask_long(8)
        pair.proxies[0].stall()
        answers = asyncio.gather(*map(timed, asked))
        await asyncio.sleep(FROZEN_S)
        pair.proxies[0].heal()
        took = await answers
        return [seconds for seconds, _ in took], pair.router, all(same for _, same in took)


@pytest.mark.slow
async def test_a_silent_replicas_streams_go_on_elsewhere(net: RouterNet) -> None:
    took_s, router, whole = await _stall(net, 0.25)
    assert whole
    assert router.resumed == 4
    assert max(took_s) < FROZEN_S


@pytest.mark.slow
async def test_the_control_without_hedging_streams_wait_for_the_thaw(net: RouterNet) -> None:
    took_s, router, whole = await _stall(net, 0.0)
    assert whole
    assert router.resumed == 0
    assert max(took_s) > FROZEN_S


async def _leave(pair: Pair, replicas: list[ReplicaUnderTest]) -> list[bytes]:
    """Four streams, while one of two replicas stops without waiting for its own."""
    asked = await pair.ask_long(4)
    assert [replica.in_flight for replica in pair.router.replicas] == [2, 2]
    await replicas[0].runner.close(0.0)
    return await asyncio.gather(*asked)


async def test_streams_of_a_replica_that_stops_go_on_elsewhere(net: RouterNet) -> None:
    async with _pair(net, SLOW) as pair:
        whole = _plain(_events(await pair.ask(max_tokens=LONG_TOKENS)))
        answers = await _leave(pair, pair.replicas)
        assert [_plain(_events(answer)) for answer in answers] == [whole] * 4
        assert pair.router.resumed == 2


async def test_the_control_without_resuming_they_end_with_its_error(net: RouterNet) -> None:
    async with _pair(net, SLOW, resume_streams=False) as pair:
        answers = await _leave(pair, pair.replicas)
        assert sum(b"shutting_down" in answer for answer in answers) == 2
        assert sum(b"[DONE]" in answer for answer in answers) == 2


@pytest.mark.security
async def test_a_client_cannot_resume_through_the_router(net: RouterNet) -> None:
    """The very request that a router would send, sealed right: the router drops the seal."""
    async with _pair(net) as pair:
        path = b"/v1/chat/completions"
        body = json.dumps(CHAT).encode()
        mac, sealed = seal("", Sent(tokens=[1]), target=path, authorization=b"", body=body)
        line = b"%b: %b\r\n" % (HEADER, mac)
        status, _, answer = await net.ask(pair.router, post(sealed, path=path, extra=line))
        assert status == 400
        assert b"unknown_parameter" in answer  # the line before the body


def test_a_long_record_keeps_tokens_only_and_an_unreadable_one_is_lost() -> None:
    record = StreamRecord()
    event = b'data: {"id":"a","created":1,"choices":[],"bul":{"tokens":[7]}}\n\n'
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    for _ in range(3 * KEEP_BYTES_MAX // len(chunk)):
        record.add(chunk)
        assert sum(map(len, record._pieces)) <= KEEP_BYTES_MAX
    sent = record.sent()
    assert sent is not None
    assert sent.tokens == [7] * (3 * KEEP_BYTES_MAX // len(chunk))
    record.add(b'data: {"error":{}}\n\n')
    assert record.sent() is None


def test_a_replicas_gaps_are_its_own_once_it_has_shown_enough() -> None:
    everybody = Percentile()
    quick, slow = Gaps(everybody), Gaps(everybody)
    assert quick.delay_s(0.25) == float("inf")
    for _ in range(SEEN_MIN):
        slow.observe(2.0)
    assert slow.delay_s(0.25) == quick.delay_s(0.25) > 1.0
    for _ in range(SEEN_MIN):
        quick.observe(0.01)
    assert quick.delay_s(0.25) == 0.25
    assert quick.delay_s(0.0) == float("inf")
