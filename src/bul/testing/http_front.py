"""A small HTTP front for tests: passes requests on, and lies or leans where it is told to.

Refuses to be fast or complete: one request a connection, bodies whole, no trailers.

    async with HttpFront(replica.url) as front:
        front.answers["/signals"] = (200, b'{"error_rate": 7}')    # that page is ours from now on
        front.leans = lambda path: other.url                       # that request goes elsewhere
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Callable
from typing import Final, Self

import httpx

__all__ = ["HttpFront"]

HEAD_BYTES_MAX: Final = 65_536
_KEPT: Final = ("content-type", "x-bul-replica", "x-bul-slots")


class HttpFront:
    """On a free port of loopback while entered.

    answers: path, with its query or without -> (status, JSON). leans: path -> where it goes
    instead, None for `target`; who answered then is said in `x-bul-replica`, as a router says it.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._client = httpx.AsyncClient(trust_env=False, timeout=30.0)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.leans: Callable[[str], str | None] = lambda _path: None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=HEAD_BYTES_MAX)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._client.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (ConnectionError, asyncio.IncompleteReadError, httpx.HTTPError)
        with contextlib.closing(writer), contextlib.suppress(*gone):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ", 2)
            lines = (line.partition(":") for line in head[1:] if line)
            headers = {name.lower(): value.strip() for name, _, value in lines}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            writer.write(await self._answer(method, path, headers, body))
            await writer.drain()

    async def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
        bare = path.partition("?")[0]
        planted = self.answers.get(path) or self.answers.get(bare)
        if planted is not None:
            status, said = planted
            return _response(status, {"content-type": "application/json"}, said)
        elsewhere = self.leans(bare)
        headers = {name: value for name, value in headers.items() if name != "host"}
        response = await self._client.request(
            method, (elsewhere or self._target) + path, headers=headers, content=body
        )
        kept = {name: response.headers[name] for name in _KEPT if name in response.headers}
        if elsewhere:
            kept["x-bul-replica"] = elsewhere
        return _response(response.status_code, kept, response.content)


def _response(status: int, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
