"""A head that was read before is read from memory: to the same request, and never to another."""

from __future__ import annotations

import pytest

from bul.errors import InvalidRequest
from bul.router.heads import HEADS_MAX, KnownHeads
from bul.router.http1 import Request, RequestReader
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import answering

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
