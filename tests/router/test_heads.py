"""A head that was read before is read from memory: to the same request, and never to another."""

from __future__ import annotations

import asyncio

import pytest

from bul.errors import InvalidRequest
from bul.router.heads import HEADS_MAX, KnownHeads
from bul.router.http1 import Request, RequestReader
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import Behaviour, answering, raw

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: bul\r\nAuthorization: Bearer x\r\nA: 1\r\n"


def _ask(body: bytes, more: bytes = b"", length: bytes = b"") -> bytes:
    return HEAD + more + b"Content-Length: %b\r\n\r\n" % (length or b"%d" % len(body)) + body


def _read(data: bytes) -> list[Request]:
    found: list[Request] = []
    RequestReader(found.append, lambda: None).feed(data)
    return found


def _known(data: bytes) -> KnownHeads:
    heads = KnownHeads()
    for request in _read(data):
        heads.learn(data, request)
    return heads


def _facts(request: Request) -> tuple[object, ...]:
    return (
        request.method,
        request.target,
        request.lines,
        request.authorization,
        request.body,
        request.keep_alive,
        request.http10,
        request.serialise(b"replica"),
    )


@pytest.mark.parametrize("body", [b"{}", b"x" * 5000, b"\r\n\r\n", b"Content-Length: 3\r\n\r\nabc"])
def test_a_known_head_gives_what_the_reader_gives(body: bytes) -> None:
    heads = _known(_ask(b"another body"))
    found = heads.request(_ask(body))
    assert found is not None
    assert _facts(found) == _facts(_read(_ask(body))[0])


@pytest.mark.security
@pytest.mark.parametrize(
    "data",
    [
        _ask(b"abc", length=b"2"),  # something is behind it
        _ask(b"abc", length=b"4"),  # not whole yet
        _ask(b"abc", length=b"+3"),
        _ask(b"abc", length=b"3 "),
        _ask(b"abc", length=b"0x3"),
        _ask(b"abc", more=b"Content-Length: 3\r\n"),
        _ask(b"abc", more=b"Transfer-Encoding: chunked\r\n"),
        _ask(b"abc", more=b"x-bul-resume: 00\r\n"),
        _ask(b"abc").replace(b"Host: bul", b"Host : bul"),
        _ask(b"abc").replace(b"\r\nA: 1", b"\r\n A: 1"),
        _ask(b"abc").replace(b"HTTP/1.1", b"HTTP/1.0"),
        _ask(b"abc") + _ask(b"abc"),
    ],
)
def test_anything_else_goes_the_long_way(data: bytes) -> None:
    assert _known(_ask(b"abc")).request(data) is None


@pytest.mark.security
@pytest.mark.parametrize(
    "more",
    [
        b"Content-Length: 3\r\n",
        b"Connection: close\r\n",
        b"Connection: A\r\n",
        b"Expect: 100-continue\r\n",
        b"x-bul-resume: 00\r\n",
    ],
)
def test_a_head_that_says_more_than_a_host_and_a_length_is_never_remembered(more: bytes) -> None:
    data = _ask(b"abc", more=more)
    heads = KnownHeads()
    try:
        for request in _read(data):
            heads.learn(data, request)
    except InvalidRequest:
        return  # and never read at all
    assert heads.request(data) is None


def test_they_are_bounded() -> None:
    heads = KnownHeads()
    for number in range(HEADS_MAX + 10):
        data = _ask(b"abc", more=b"n: %d\r\n" % number)
        heads.learn(data, _read(data)[0])
    assert len(heads._known) <= HEADS_MAX


async def test_the_same_client_again_and_again_is_passed_on_unchanged(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream)
    client = await net.client(router)
    bodies = [b'{"n": %d}' % (10**number) for number in range(6)]
    for body in bodies:
        await client.send(post(body))
        assert (await client.answer())[0] == 200
    assert [request.split(b"\r\n\r\n")[1] for request in upstream.requests] == bodies
    assert len({request.split(b"content-length")[0] for request in upstream.requests}) == 1


# Answers.

PLAIN = b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: 3\r\na: 1\r\n\r\nabc"


def _first_and_then(first: bytes, then: Behaviour) -> Behaviour:
    """The first answer is plain, all others are something else."""
    asked = 0

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await (raw(first, close=False) if asked == 1 else then)(request, writer)

    return behave


async def test_an_answer_under_a_known_head_is_what_it_would_be_under_a_new_one(
    net: RouterNet,
) -> None:
    bodies = [b"x" * 10**number for number in range(5)]
    left = [PLAIN.replace(b"3", b"%d" % len(body)).replace(b"abc", body) for body in bodies]

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        await raw(left.pop(0), close=False)(request, writer)

    router = await net.router(await net.upstream(behave))
    client = await net.client(router)
    heads = []
    for body in bodies:
        await client.send(post(b"{}"))
        status, headers, found = await client.answer()
        assert (status, found) == (200, body)
        assert headers.pop(b"content-length") == b"%d" % len(body)
        heads.append(headers)
    assert all(head == heads[0] for head in heads)
    assert heads[0][b"a"] == b"1"
    assert b"x-bul-replica" in heads[0]
    await client.send(post(b"{}").replace(b"Host: bul", b"Host: bul\r\nConnection: close"))
    left.append(PLAIN)
    assert (await client.answer())[1][b"connection"] == b"close"


@pytest.mark.security
@pytest.mark.parametrize(
    "answer",
    [
        PLAIN + b"d",
        PLAIN + PLAIN,
        PLAIN[:-1],
        PLAIN.replace(b": 3", b": 3, 4"),
        PLAIN.replace(b": 3", b": 03"),
        PLAIN.replace(b": 3", b": 3\r\ncontent-length: 4"),
        PLAIN.replace(b": 3", b": 3\r\ntransfer-encoding: chunked"),
        PLAIN.replace(b"\r\na: 1", b"\r\n a: 1"),
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"200 OK", b"204 No Content"),
        PLAIN.replace(b"a: 1", b"connection: close"),
    ],
)
async def test_a_known_head_lets_nothing_pass_that_would_not_have_passed(
    net: RouterNet, answer: bytes
) -> None:
    async def ask(*, learned: bool) -> object:
        then = raw(answer)
        behave = _first_and_then(PLAIN, then) if learned else then
        upstream = await net.upstream(behave)
        router = await net.router(upstream, retries_at_least=0, retry_share=0.0)
        if learned:
            assert (await net.ask(router, post(b"{}")))[0] == 200
            assert router.replicas[0].answers.find(PLAIN) is not None
            assert router.replicas[0].answers.find(answer) is None
        status, headers, body = await net.ask(router, post(b"{}"))
        return status, sorted(headers.keys()), body

    assert await ask(learned=True) == await ask(learned=False)


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN.replace(b"200 OK", b"429 Too Many Requests"),
        PLAIN.replace(b"200 OK", b"404 Not Found"),
        PLAIN.replace(b"a: 1", b"connection: close"),
        PLAIN.replace(b"a: 1", b"a: content-length"),
        PLAIN.replace(b": 3", b": 4"),
    ],
)
async def test_only_a_whole_plain_200_is_remembered(net: RouterNet, answer: bytes) -> None:
    router = await net.router(await net.upstream(raw(answer)), retries_at_least=0, retry_share=0.0)
    await net.ask(router, post(b"{}"))
    assert router.replicas[0].answers.find(answer) is None
