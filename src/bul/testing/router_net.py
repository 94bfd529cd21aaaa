"""Routers over fake upstreams, and a client that writes exactly what it is told.

Refuses to leave anything open: what a `RouterNet` made ends with the stack it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from bul.config import RouteConfig
from bul.router.app import Router
from bul.router.quota import Quotas
from bul.testing.upstreams import FakeUpstream
from bul.testing.waiting import until
from bul.tracing import Tracer

__all__ = ["CHAT", "RawClient", "RouterNet", "post"]

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'


def post(body: bytes = CHAT, *, path: bytes = b"/v1/chat/completions", extra: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: bul\r\nContent-Length: %d\r\n%b\r\n%b" % (
        path,
        len(body),
        extra,
        body,
    )


class RawClient:
    """One connection; `answer()` reads one response, `rest()` all to the end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, silent_s: float = 10.0) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body. Raises TimeoutError if nothing comes for `silent_s`."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), silent_s)
        lines = head.split(b"\r\n")
        headers = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(b": ")
            headers[name.lower()] = value
        if headers.get(b"transfer-encoding") == b"chunked":
            body = b""
            while not body.endswith(b"0\r\n\r\n"):
                body += await asyncio.wait_for(self.reader.readuntil(b"\r\n"), 10)
        else:
            length = int(headers.get(b"content-length", b"0"))
            body = await asyncio.wait_for(self.reader.readexactly(length), 10)
        return int(lines[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        """To the end; a reset is an end."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := await asyncio.wait_for(self.reader.read(65536), 10):
                data += piece
        return data

    def close(self) -> None:
        self.writer.transport.abort()


class RouterNet:
    """What a test opens; all of it is closed at its end."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack

    async def router(
        self,
        *upstreams: FakeUpstream | str,
        wait: bool = True,
        quotas: Quotas | None = None,
        tracer: Tracer | None = None,
        **settings: Any,
    ) -> Router:
        """A router over these fakes, or over replicas at these URLs."""
        settings = {"port": 0, "probe_interval_s": 0.05, "header_timeout_s": 5.0} | settings
        urls = tuple(found if isinstance(found, str) else found.url for found in upstreams)
        router = Router(RouteConfig(replicas=urls, **settings), quotas=quotas, tracer=tracer)
        await router.start()
        self._stack.push_async_callback(router.stop)
        if wait:
            await until(lambda: len(router.ready) == len(upstreams))
        return router

    async def upstream(self, behaviour: Any, **options: Any) -> FakeUpstream:
        return await self._stack.enter_async_context(FakeUpstream(behaviour, **options))

    async def client(self, router: Router) -> RawClient:
        port = int(router.url.rpartition(":")[2])
        client = RawClient(*await asyncio.open_connection("127.0.0.1", port))
        self._stack.callback(client.close)
        return client

    async def ask(self, router: Router, data: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        client = await self.client(router)
        await client.send(data)
        try:
            return await client.answer()
        finally:
            client.close()
