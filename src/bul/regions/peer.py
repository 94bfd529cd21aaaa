"""The wire between regions: HTTP, both ends. A client for one region, an application for all.

Refuses to follow a redirect, to use a proxy of the environment, to believe an answer without its
MAC, to read a body whose head was not in order, and to route anything that is not in its table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import httpx

from bul.clock import Clock
from bul.regions.auth import Guard, Refused, Seal
from bul.regions.messages import BODY_BYTES_MAX, MessageInvalid
from bul.regions.node import PeerFailed

__all__ = ["Handler", "PeerApp", "PeerClient"]

HEAD_BYTES = 700
"""About what a request's or an answer's head costs; counted as sent."""
CONNECTIONS_MAX = 32
TIMEOUT_S = 60.0
"""Of one step; each question brings its own, shorter deadline for all of them."""
REFUSAL = b"refused\n"

Message = MutableMapping[str, Any]
Handler = Callable[[str, str, bytes], Awaitable[bytes]]
"""(region, path, body) -> the answer. Raises MessageInvalid."""


class PeerClient:
    """Asks one region. base: "/peer/" for another region, "/local/" for one's own."""

    def __init__(self, seal: Seal, region: str, url: str, clock: Clock, base: str = "/peer/"):
        self.region = region
        self.sent_bytes_total = 0
        self.received_bytes_total = 0
        self._seal = seal
        self._base = base
        self._clock = clock
        limits = httpx.Limits(
            max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX
        )
        self._client = httpx.AsyncClient(
            base_url=url,
            trust_env=False,
            timeout=TIMEOUT_S,
            limits=limits,
            follow_redirects=False,
        )

    async def ask(self, path: str, body: bytes, deadline_s: float) -> bytes:
        """The verified answer. Raises PeerFailed, for whatever reason."""
        path = self._base + path
        headers = self._seal.request(self.region, path, body, int(self._clock.wall_s() * 1000))
        self.sent_bytes_total += len(body) + HEAD_BYTES
        try:
            async with asyncio.timeout(deadline_s):
                status, mac, answer = await self._post(path, body, headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            raise PeerFailed(f"{self.region} did not answer: {error!r}") from error
        self.received_bytes_total += len(answer) + HEAD_BYTES
        nonce = headers["x-bul-nonce"]
        if not self._seal.is_answer(self.region, nonce, status, answer, mac):
            raise PeerFailed(f"{self.region} answered {status}, unsigned")
        if status != 200:
            raise PeerFailed(f"{self.region} answered {status}: {answer[:200]!r}")
        return answer

    async def _post(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, str, bytes]:
        async with self._client.stream("POST", path, content=body, headers=headers) as response:
            length = response.headers.get("content-length", "")
            if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
                raise PeerFailed(f"{self.region} answered with a bad length")
            answer = await response.aread()
            return response.status_code, response.headers.get("x-bul-mac", ""), answer

    async def close(self) -> None:
        await self._client.aclose()


class PeerApp:
    """Raw ASGI. handlers: by the first part of the path, "peer" or "local".

    A region may only ask "/peer/", and this region's own replicas only "/local/". pages: open
    ones, path -> what makes (content type, body); `/health` is always there.
    """

    def __init__(
        self,
        guard: Guard,
        seal: Seal,
        handlers: Mapping[str, Handler],
        clock: Clock,
        pages: Mapping[str, Callable[[], tuple[bytes, bytes]]] | None = None,
    ) -> None:
        self._guard = guard
        self._seal = seal
        self._handlers = handlers
        self._clock = clock
        self._pages = {"/health": lambda: (b"text/plain", b"ok\n"), **(pages or {})}

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", scope["type"]
        path = scope["raw_path"].decode("latin-1")
        page = self._pages.get(path)
        if page is not None and scope["method"] in ("GET", "HEAD"):
            kind, text = page()
            await _respond(send, 200, text, [(b"content-type", kind)])
            return
        try:
            now_ms = int(self._clock.wall_s() * 1000)
            admission = self._guard.admit(scope["method"], path, scope["headers"], now_ms)
            handler = self._handler(path, admission.region)
            body = await _body(receive, admission.length)
            if body is None:
                return
            self._guard.check_body(admission, body)
        except Refused as refused:
            # Unsigned, and the connection ends: what follows on it was not read.
            await _respond(send, refused.status, REFUSAL, [(b"connection", b"close")])
            return
        status, answer = 200, b""
        try:
            answer = await handler(admission.region, path.split("/", 2)[2], body)
        except MessageInvalid as error:
            status, answer = 400, str(error).encode()
        mac = self._seal.answer(admission.region, admission.nonce, status, answer)
        await _respond(send, status, answer, [(b"x-bul-mac", mac)])

    def _handler(self, path: str, region: str) -> Handler:
        """Raises Refused where one region asks for what is another's."""
        kind = path.split("/", 2)[1]
        handler = self._handlers.get(kind)
        if handler is None or (region == self._seal.region) is not (kind == "local"):
            raise Refused(401, "not for this region")
        return handler


async def _body(receive: Any, length: int) -> bytes | None:
    """At most `length` bytes and one more; `None` if the client left."""
    parts: list[bytes] = []
    size = 0
    while size <= length:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body", False):
            break
    return b"".join(parts)


async def _respond(send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
