"""A fake replica that answers, streams, dawdles, breaks off, talks nonsense or says nothing.

Refuses to be a service: a behaviour is a coroutine that gets one whole request's bytes and a
writer. What it received and which connections its clients closed are kept, for tests to look at.

    async with FakeUpstream(answering(b"hello")) as upstream:
        ...  # http://127.0.0.1:PORT is upstream.url
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Awaitable, Callable, Iterable
from typing import Self

__all__ = [
    "Behaviour",
    "FakeUpstream",
    "answering",
    "chunk",
    "raw",
    "silent",
    "streaming",
]

Behaviour = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request. Raising ConnectionResetError drops the connection."""

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def answering(body: bytes, *, status: bytes = b"200 OK", delay_s: float = 0.0) -> Behaviour:
    """The same whole answer for everybody."""
    head = b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n"

    async def behave(_request: bytes, writer: asyncio.StreamWriter) -> None:
        if delay_s:
            await asyncio.sleep(delay_s)
        writer.write(head % (status, len(body)) + body)
        await writer.drain()

    return behave


def chunk(data: bytes) -> bytes:
    """One chunk on the wire; of no data, the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def streaming(pieces: Iterable[bytes], *, interval_s: float = 0.0, die: bool = False) -> Behaviour:
    """A chunked stream of events, one chunk a piece; with `die` it breaks off after the last."""
    parts = tuple(pieces)

    async def behave(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for part in parts:
            writer.write(chunk(part))
            await writer.drain()
            await asyncio.sleep(interval_s)
        if die:
            raise ConnectionResetError
        writer.write(chunk(b""))
        await writer.drain()

    return behave


def raw(data: bytes, *, close: bool = True) -> Behaviour:
    """These very bytes, then the end: garbage, half an answer, or (empty) no answer at all."""

    async def behave(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            raise ConnectionResetError

    return behave


async def silent(_request: bytes, _writer: asyncio.StreamWriter) -> None:
    """Take the request and never say a word."""
    await asyncio.Event().wait()


class FakeUpstream:
    """Listens on a free port while entered. `behaviour` and `ready` may be changed at any time.

    requests: the raw bytes of each request but those for /ready and /cache/events, which is not
    there unless `events` is set. hung_up: connections that the
    other side closed while an answer was under way.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        *,
        ready: bool = True,
        not_ready: bytes = b"503 Service Unavailable",
        port: int = 0,
    ) -> None:
        self.behaviour = behaviour
        self.events = answering(b"", status=b"404 Not Found")
        self.ready = ready
        self.not_ready = not_ready
        self.port = port
        self.requests: list[bytes] = []
        self.connections = 0
        self.hung_up = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Stop listening and break all connections, as the kernel does for a killed process."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
            pass  # the end of this connection, whoever made it
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await _read_request(reader)
            if request.startswith(b"GET /ready "):
                status = b"200 OK" if self.ready else self.not_ready
                await answering(b"", status=status)(request, writer)
                continue
            if request.startswith(b"GET /cache/events"):
                await self.events(request, writer)
                continue
            self.requests.append(request)
            self.in_flight += 1
            self.in_flight_max = max(self.in_flight_max, self.in_flight)
            try:
                await self._answer(request, reader, writer)
            finally:
                self.in_flight -= 1

    async def _answer(
        self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer, and notice at once when the other side hangs up."""
        answer = asyncio.ensure_future(self.behaviour(request, writer))
        hang_up = asyncio.ensure_future(_end_of(reader))
        try:
            await asyncio.wait((answer, hang_up), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.hung_up += 1
                raise ConnectionResetError
            await answer
        finally:
            for task in (answer, hang_up):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await asyncio.gather(answer, hang_up, return_exceptions=True)


async def _end_of(reader: asyncio.StreamReader) -> None:
    """A byte before the answer would be pipelining, which a router must not do to a replica."""
    assert await reader.read(1) == b""


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head + await reader.readexactly(length)
