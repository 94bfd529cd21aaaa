"""What the router reads: the smuggling corpus, the limits, and what it writes anew."""

from __future__ import annotations

import json

import pytest

from bul.router.http1 import BODY_BYTES_MAX, HEAD_BYTES_MAX
from bul.testing.router_net import CHAT, RouterNet, post
from bul.testing.upstreams import answering

H = b"POST /v1/x HTTP/1.1\r\nHost: bul\r\n"

SMUGGLING = {
    "length and chunked": H + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": H + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "two equal lengths": H + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "two lengths": H + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
    "a list of lengths": H + b"Content-Length: 2, 2\r\n\r\nhi",
    "a signed length": H + b"Content-Length: +2\r\n\r\nhi",
    "a negative length": H + b"Content-Length: -2\r\n\r\nhi",
    "a hexadecimal length": H + b"Content-Length: 0x2\r\n\r\nhi",
    "an unknown coding": H + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": H + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "gzip before chunked": H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked before gzip": H + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": H + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
    "space before the colon": H + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "tab before the coding": H + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded line": H + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: bul\n\n",
    "a bare carriage return": H + b"X: a\rContent-Length: 2\r\n\r\n",
    "a zero byte in a value": H + b"X: a\x00b\r\n\r\n",
    "a zero byte in a name": H + b"X\x00: a\r\n\r\n",
    "a letter in the chunk size": H + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n",
    "0x in the chunk size": H + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
    "a signed chunk size": H + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nhi\r\n0\r\n\r\n",
    "a huge chunk size": H + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 20 + b"\r\nhi",
    "line feeds as chunk ends": H + b"Transfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n",
    "a chunk longer than said": H + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi!\r\n0\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "an absurd host": b"GET / HTTP/1.1\r\nHost: " + b"a" * 300 + b"\r\n\r\n",
    "a whole URL": b"GET http://elsewhere/ HTTP/1.1\r\nHost: bul\r\n\r\n",
    "a fragment": b"GET /a#b HTTP/1.1\r\nHost: bul\r\n\r\n",
    "bytes beyond ASCII in the path": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: bul\r\n\r\n",
    "an upgrade with a body": H + b"Connection: upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 2\r\n\r\nhi",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: bul\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.security
@pytest.mark.parametrize("what", sorted(SMUGGLING))
async def test_what_has_two_readings_is_refused_and_never_reaches_a_replica(
    net: RouterNet, what: str
) -> None:
    upstream = await net.upstream(answering(b"secret"))
    router = await net.router(upstream)
    client = await net.client(router)
    await client.send(SMUGGLING[what] + b"GET /smuggled HTTP/1.1\r\nHost: bul\r\n\r\n")
    status, headers, body = await client.answer()
    assert status == 400
    assert headers[b"connection"] == b"close"
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert await client.rest() == b""
    assert upstream.requests == []
    assert (await net.ask(router, post()))[0] == 200


async def test_the_corpus_reaches_a_replica_once_it_is_mended(net: RouterNet) -> None:
    """The control: it is the flaw that is refused, not the shape of the request."""
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream)
    mended = H + b"Transfer-Encoding: chunked\r\n\r\n2;ext=1\r\nhi\r\n0\r\nX-Trailer: t\r\n\r\n"
    assert (await net.ask(router, mended))[2] == b"ok"
    assert upstream.requests[0].endswith(b"content-length: 2\r\n\r\nhi")
    assert b"X-Trailer" not in upstream.requests[0]


async def test_headers_and_bodies_are_refused_one_byte_beyond_their_limit(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream)
    assert (await net.ask(router, post(b"x" * BODY_BYTES_MAX)))[0] == 200
    assert (await net.ask(router, post(b"x" * (BODY_BYTES_MAX + 1))))[0] == 413
    fitting = b"GET / HTTP/1.1\r\nHost: bul\r\nX: %b\r\n\r\n"
    room = HEAD_BYTES_MAX - len(fitting % b"")
    assert (await net.ask(router, fitting % (b"x" * room)))[0] == 200
    assert (await net.ask(router, fitting % (b"x" * (HEAD_BYTES_MAX + 1))))[0] == 431
    assert (await net.ask(router, b"GET /%b HTTP/1.1\r\n" % (b"x" * HEAD_BYTES_MAX)))[0] == 431


async def test_a_chunked_body_is_refused_when_its_sum_is_beyond_the_limit(net: RouterNet) -> None:
    router = await net.router(await net.upstream(answering(b"ok")))
    client = await net.client(router)
    await client.send(H + b"Transfer-Encoding: chunked\r\n\r\n")
    piece = b"10000\r\n%b\r\n" % (b"x" * 0x10000)
    for _ in range(BODY_BYTES_MAX // 0x10000 + 1):
        await client.send(piece)
    assert (await client.answer())[0] == 413


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE", b"PURGE"])
async def test_methods_that_an_api_has_no_use_for_are_refused(
    net: RouterNet, method: bytes
) -> None:
    router = await net.router(await net.upstream(answering(b"ok")))
    assert (await net.ask(router, method + b" /a HTTP/1.1\r\nHost: bul\r\n\r\n"))[0] in (400, 405)


async def test_hop_by_hop_headers_end_at_the_router(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream)
    extra = (
        b"Connection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n"
        b"TE: trailers\r\nProxy-Authorization: Basic x\r\nAuthorization: Bearer k\r\nX-Kept: 2\r\n"
    )
    assert (await net.ask(router, post(extra=extra)))[0] == 200
    head, _, body = upstream.requests[0].partition(b"\r\n\r\n")
    names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
    assert names == {b"host", b"content-length", b"authorization", b"x-kept"}
    assert f"host: 127.0.0.1:{upstream.port}".encode() in head
    assert body == CHAT


async def test_a_client_that_expects_100_continue_gets_it_before_its_body(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream)
    client = await net.client(router)
    await client.send(H + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"hi")
    assert (await client.answer())[2] == b"ok"
    assert b"xpect" not in upstream.requests[0]
    assert (await net.ask(router, post(extra=b"Expect: a miracle\r\n")))[0] == 417


async def test_an_upgrade_is_ignored(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream)
    client = await net.client(router)
    upgrade = b"GET /a HTTP/1.1\r\nHost: bul\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    await client.send(upgrade + b"GET /b HTTP/1.1\r\nHost: bul\r\n\r\n")
    assert (await client.answer())[2] == b"ok"
    assert (await client.answer())[2] == b"ok"
    assert b"pgrade" not in upstream.requests[0]


async def test_pipelined_requests_are_answered_in_order(net: RouterNet) -> None:
    async def echo(request: bytes, writer: object) -> None:
        path = request.split()[1]
        await answering(path, delay_s=0.02 if path == b"/0" else 0.0)(request, writer)  # type: ignore[arg-type] # a StreamWriter, as the behaviour gets it

    router = await net.router(await net.upstream(echo), await net.upstream(echo))
    client = await net.client(router)
    gets = [b"GET /%d HTTP/1.1\r\nHost: bul\r\n\r\n" % number for number in range(20)]
    await client.send(b"".join(gets[:10]))
    for get in gets[10:]:
        await client.send(get)
    answers = [(await client.answer())[2] for _ in gets]
    assert answers == [b"/%d" % number for number in range(20)]


async def test_too_many_requests_at_once_are_refused_after_the_first_ones(net: RouterNet) -> None:
    router = await net.router(await net.upstream(answering(b"ok")))
    client = await net.client(router)
    await client.send(b"GET / HTTP/1.1\r\nHost: bul\r\n\r\n" * 40)
    statuses = [(await client.answer())[0] for _ in range(33)]
    assert statuses == [200] * 32 + [429]
    assert await client.rest() == b""


async def test_a_1_0_client_gets_an_answer_without_chunks_and_the_end(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream)
    client = await net.client(router)
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    status, headers, body = await client.answer()
    assert (status, headers[b"connection"], body) == (200, b"close", b"ok")
    assert await client.rest() == b""
    assert upstream.requests[0].startswith(b"GET / HTTP/1.0\r\n")
