"""One HTTP exchange over ASGI: read a bounded body, answer whole or in pieces, notice who left.

Refuses bodies beyond their limit while they come in, and a second answer to one request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from bul.errors import InvalidRequest
from bul.tracing import Span

__all__ = ["ASGIReceive", "ASGISend", "ClientGone", "Exchange", "Message"]

Message = MutableMapping[str, Any]
ASGIReceive = Callable[[], Awaitable[Message]]
ASGISend = Callable[[Message], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

JSON = b"application/json"


class ClientGone(Exception):
    """The client closed its connection; there is nobody left to answer."""


class Exchange:
    """One request and its answer. `status` is 0 until the answer has begun. span: of its trace."""

    __slots__ = (
        "_receive", "_send", "gone", "headers", "method", "path", "query", "span", "status",
    )  # fmt: skip

    def __init__(self, scope: Message, receive: ASGIReceive, send: ASGISend) -> None:
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.status = 0
        self.gone = False
        self.span: Span | None = None
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> bytes:
        """The first value of a header (lower-case name), b"" if absent."""
        return next((value for given, value in self.headers if given == name), b"")

    async def body(self, bytes_max: int) -> bytes:
        """The whole body. Raises InvalidRequest (413) beyond `bytes_max`, ClientGone."""
        declared = self.header(b"content-length")
        if declared.isdigit() and int(declared) > bytes_max:
            raise _too_large(bytes_max)
        message = await self._receive()
        parts: list[bytes] = []
        size = 0
        while message["type"] == "http.request":
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > bytes_max:
                raise _too_large(bytes_max)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await self._receive()
        raise ClientGone

    async def respond(
        self, status: int, body: bytes, *, content_type: bytes = JSON, headers: Headers = ()
    ) -> None:
        """A whole answer."""
        fixed = ((b"content-type", content_type), (b"content-length", b"%d" % len(body)))
        await self._start(status, (*fixed, *headers))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def start_stream(self, headers: Headers = ()) -> None:
        """Begin an answer of server-sent events; `write` follows, then `end`."""
        fixed = (
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        )
        await self._start(200, (*fixed, *headers))

    async def write(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self, piece: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work` and cancel it the moment the client leaves; then raises ClientGone.

        The body must have been read. Cancellation from elsewhere passes through.
        """
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(self._watch(task))
        try:
            await work
        except asyncio.CancelledError:
            if not self.gone:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            watcher.cancel()

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        task.cancel()

    async def _start(self, status: int, headers: Headers) -> None:
        assert self.status == 0, "answered twice"
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def _too_large(bytes_max: int) -> InvalidRequest:
    return InvalidRequest(
        f"the body is larger than {bytes_max} bytes", code="body_too_large", status=413
    )
