"""The two ends of `bench/router.py`: a fake replica and a load generator, each in its own process.

Refuses to do more than move bytes: whatever they cost is taken from the router on a shared machine.

    python bench/_router_load.py upstream PORT
    python bench/_router_load.py load PORT REQUESTS CONNECTIONS whole|stream
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
import typing

import uvloop

__all__ = ["CHUNKS", "body"]

CHUNKS = 100
CHUNK_INTERVAL_S = 0.004
CONVERSATIONS = 64
BODY_BYTES = 8192
ANSWER = b'{"id":"x","object":"chat.completion","choices":[],"usage":{}}' + b" " * 439
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"delta":{"content":"a"}}]}'
CHUNK = b"%x\r\n%b\n\n\r\n" % (len(EVENT) + 2, EVENT)
LAST = b"0\r\n\r\n"


def body(conversation: int, turn: int, *, stream: bool) -> bytes:
    """A chat of about 8 kB: a conversation's text is the same each time, its last turn is not."""
    words = random.Random(conversation).choices(["alpha", "beta", "gamma", "delta"], k=2000)
    text = " ".join(words)[: BODY_BYTES - 400]
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": f"And now, turn {turn}?"},
    ]
    document = {"model": "m", "messages": messages, "stream": stream, "max_tokens": 16}
    return json.dumps(document).encode()


class _Upstream(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = typing.cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        # Routers that write bodies anew leave the blank out.
        streamed = b'"stream": true' in self._buffer or b'"stream":true' in self._buffer
        self._buffer = b""
        if streamed:
            task = asyncio.get_running_loop().create_task(self._stream())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._transport.write(WHOLE)

    async def _stream(self) -> None:
        self._transport.write(HEAD)
        for _ in range(CHUNKS):
            await asyncio.sleep(CHUNK_INTERVAL_S)
            self._transport.write(CHUNK)
        self._transport.write(LAST)


class _Load(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer."""

    def __init__(self, left: list[int], ask: list[bytes], done: asyncio.Event, *, stream: bool):
        self._left, self._ask, self._done, self._stream = left, ask, done, stream
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = typing.cast("asyncio.Transport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        if self._stream:
            self._buffer = (self._buffer + data)[-len(LAST) :]
            if self._buffer == LAST:
                self._buffer = b""
                self._next()
            return
        self._buffer += data
        if self._buffer.endswith(ANSWER):
            assert self._buffer.startswith(b"HTTP/1.1 200"), self._buffer[:200]
            self._buffer = b""
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._done.is_set(), "the router closed a connection"

    def _next(self) -> None:
        self._left[0] -= 1
        if self._left[0] >= 0:
            self._transport.write(self._ask[self._left[0] % len(self._ask)])
            return
        self._left[1] -= 1
        if self._left[1] == 0:
            self._done.set()


async def _serve(port: int) -> None:
    await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", port)
    await asyncio.Event().wait()


async def _load(port: int, requests: int, connections: int, *, stream: bool) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
    head += b"User-Agent: bench\r\nAuthorization: Bearer x\r\nContent-Type: application/json\r\n"
    asks = []
    for number in range(CONVERSATIONS * 4):
        content = body(number % CONVERSATIONS, number // CONVERSATIONS, stream=stream)
        asks.append(head + b"Content-Length: %d\r\n\r\n%b" % (len(content), content))
    left, done = [requests, connections], asyncio.Event()
    loop = asyncio.get_running_loop()
    begin_s = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(
            lambda: _Load(left, asks, done, stream=stream), "127.0.0.1", port
        )
    await done.wait()
    print(time.perf_counter() - begin_s)


def _main() -> None:
    role, port = sys.argv[1], int(sys.argv[2])
    if role == "upstream":
        uvloop.run(_serve(port))
    else:
        requests, connections = int(sys.argv[3]), int(sys.argv[4])
        uvloop.run(_load(port, requests, connections, stream=sys.argv[5] == "stream"))


if __name__ == "__main__":
    _main()
