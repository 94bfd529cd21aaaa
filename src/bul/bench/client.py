"""One streamed chat completion at a time per connection, on a bare asyncio protocol.

Refuses to retry and to follow: a figure that hides a failed attempt is no figure. A framework
would cost more per request than the service under test; httptools parses, msgspec decodes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import time
from array import array
from collections.abc import Sequence
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec

from bul.errors import ConfigError

__all__ = ["ERRORS", "Client", "Sample", "Target", "now_s", "parse_target"]

now_s = time.perf_counter
"""The clock of all figures: the loop's own is a cached millisecond in uvloop."""

ERRORS = (
    "refused", "timeout", "429", "4xx", "5xx", "cut", "sse_error", "bad_reply", "not_sent",
    "unfinished",
)  # fmt: skip
"""refused: no connection. cut: it broke off, or the stream had no [DONE]. not_sent: too many in
flight. unfinished: cancelled at the end of a run."""

IDLE_S_MAX = 1.0
"""An idle connection older than this is replaced: the server may be closing it right now."""
BUFFER_BYTES_MAX = 8 << 20
GAPS_PER_REPLY_MAX = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where to send: `url` as the user wrote it, `path` with /v1/chat/completions' prefix."""

    host: str
    port: int
    tls: bool
    prefix: str
    api_key: str = dataclasses.field(default="", repr=False)


def parse_target(url: str, *, api_key: str = "", allow_remote: bool = False) -> Target:
    """`http://127.0.0.1:8000`, with or without `/v1`. Raises ConfigError."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from error
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
        raise ConfigError(f"{url!r} is not like http://127.0.0.1:8000")
    if not allow_remote and host not in ("localhost", "::1") and not host.startswith("127."):
        raise ConfigError(
            f"{host} is not this machine", hint="--allow-remote, if its owner knows of the load"
        )
    if any(ord(letter) <= 32 or ord(letter) >= 127 for letter in api_key):
        raise ConfigError("the API key has characters that no header may carry")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Target(host=host, port=port, tls=parts.scheme == "https", prefix=prefix, api_key=api_key)


@dataclasses.dataclass(kw_only=True, slots=True)
class Sample:
    """One request as its user felt it. Times are `now_s`'s, 0.0 until they happen.

    intended_s: when it was due, which open-loop latency counts from. error: "" or one of ERRORS.
    tokens: of the reply, by `usage`, else its chunks. gaps_s: between chunks of text.
    """

    number: int
    intended_s: float
    sent_s: float = 0.0
    first_s: float = 0.0
    done_s: float = 0.0
    error: str = ""
    status: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    usage_seen: bool = False
    said: str = ""
    gaps_s: array[float] = dataclasses.field(default_factory=lambda: array("d"))

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.intended_s

    @property
    def e2e_s(self) -> float:
        return self.done_s - self.intended_s


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"")


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_encode = msgspec.json.Encoder().encode


class _Connection(asyncio.Protocol):
    """Keep-alive; `reply` is the Sample it works on, None when idle."""

    def __init__(self, pool: list[_Connection]) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._buffer = b""
        self._text: list[str] = []
        self._last_s = 0.0
        self._ended = False
        self._waiter: asyncio.Future[str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sample: Sample | None = None
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._pool:
            self._pool.remove(self)
        self._transport = None
        self._finish("" if self._ended else "cut")

    async def exchange(self, data: bytes, sample: Sample, timeout_s: float) -> str:
        """Send and fill `sample`; returns the reply's text."""
        if self._transport is None:  # closed as soon as it was opened
            sample.error, sample.done_s = "cut", now_s()
            return ""
        self._sample, waiter = sample, self._loop.create_future()
        self._waiter = waiter
        self._parser = httptools.HttpResponseParser(self)
        self._buffer, self._text, self._ended = b"", [], False
        self._timer = self._loop.call_later(timeout_s, self._finish, "timeout")
        self._transport.write(data)
        try:
            return str(await waiter)
        finally:
            if waiter.cancelled():
                self._forget()
                self.close()

    def _forget(self) -> None:
        self._sample = None
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        transport = self._transport
        fresh = now_s() - self.idle_since_s < IDLE_S_MAX
        return transport is not None and not transport.is_closing() and fresh

    def data_received(self, data: bytes) -> None:
        if self._sample is None or self._parser is None:
            self.close()  # bytes that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._finish("bad_reply")

    def eof_received(self) -> None:
        self._finish("" if self._ended else "cut")

    # httptools' callbacks

    def on_status(self, _: bytes) -> None:
        assert self._sample is not None
        assert self._parser is not None
        self._sample.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        sample = self._sample
        if sample is None or sample.error:
            return
        if sample.status != 200:
            self._buffer = (self._buffer + data)[:300]
            return
        lines = (self._buffer + data).split(b"\n")
        self._buffer = lines.pop()
        if len(self._buffer) > BUFFER_BYTES_MAX:
            self._finish("bad_reply")
        came_s = now_s()
        for line in lines:
            if line.startswith(b"data:") and self._sample is sample:
                self._event(sample, line[5:].strip(), came_s)

    def on_message_complete(self) -> None:
        sample, parser = self._sample, self._parser
        if sample is None or parser is None:
            return
        status = parser.get_status_code()
        if status == 200:
            self._finish("" if self._ended else "cut", keep=parser.should_keep_alive())
            return
        sample.status, sample.said = status, self._buffer.decode("utf-8", "replace")
        kind = "429" if status == 429 else f"{status // 100}xx"
        kind = kind if kind in ERRORS else "bad_reply"
        self._finish(kind, keep=parser.should_keep_alive())

    def _event(self, sample: Sample, data: bytes, came_s: float) -> None:
        if data == b"[DONE]":
            self._ended = True
            return
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._finish("bad_reply")
            return
        if chunk.error and bytes(chunk.error) != b"null":
            sample.said = bytes(chunk.error)[:300].decode("utf-8", "replace")
            self._finish("sse_error")
            return
        if chunk.usage is not None:
            _note_usage(sample, chunk.usage)
        for choice in chunk.choices:
            self._text_came(sample, choice.delta, came_s)

    def _text_came(self, sample: Sample, delta: _Delta, came_s: float) -> None:
        if not (delta.content or delta.reasoning_content):
            return
        if sample.first_s == 0.0:
            sample.first_s = came_s
        elif len(sample.gaps_s) < GAPS_PER_REPLY_MAX:
            sample.gaps_s.append(came_s - self._last_s)
        self._last_s = came_s
        if not sample.usage_seen:
            sample.tokens += 1
        if delta.content:
            self._text.append(delta.content)

    def _finish(self, error: str, *, keep: bool = False) -> None:
        sample, waiter = self._sample, self._waiter
        if sample is None or waiter is None or waiter.done():
            return
        sample.error, sample.done_s = error, now_s()
        if not error and sample.first_s == 0.0:
            sample.first_s = sample.done_s  # an empty reply
        # Everything of this reply is let go before the pool, or anyone, can have the connection.
        self._forget()
        waiter.set_result("".join(self._text))
        self.idle_since_s = sample.done_s
        if keep and error in ("", "429", "4xx", "5xx"):
            self._pool.append(self)
        else:
            self.close()


def _note_usage(sample: Sample, usage: _Usage) -> None:
    sample.usage_seen = True
    sample.prompt_tokens = usage.prompt_tokens
    sample.tokens = usage.completion_tokens
    if usage.prompt_tokens_details is not None:
        sample.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0


class Client:
    """Requests at one target. Not thread-safe; `close` when done."""

    def __init__(self, target: Target, *, model: str, timeout_s: float = 60.0) -> None:
        self._target = target
        self._model = model
        self._timeout_s = timeout_s
        self._pool: list[_Connection] = []
        self._tls = ssl.create_default_context() if target.tls else None
        key = f"Authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
        host = f"[{target.host}]" if ":" in target.host else target.host
        self._head = (
            f"POST {target.prefix}/v1/chat/completions HTTP/1.1\r\n"
            f"Host: {host}:{target.port}\r\n{key}"
            "Content-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: "
        ).encode("ascii")

    async def ask(
        self, messages: Sequence[dict[str, str]], output_tokens: int, sample: Sample
    ) -> str:
        """Fill `sample`; returns the text. Raises nothing for what a server can do."""
        body = _encode(
            {
                "model": self._model,
                "messages": messages,
                "max_tokens": output_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        data = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        sample.sent_s = now_s()
        connection = await self._connection(sample)
        if connection is None:
            sample.done_s = now_s()
            return ""
        left_s = max(self._timeout_s - (now_s() - sample.sent_s), 0.001)
        return await connection.exchange(data, sample, left_s)

    async def _connection(self, sample: Sample) -> _Connection | None:
        while self._pool:
            connection = self._pool.pop()
            if connection.usable:
                return connection
            connection.close()
        loop, target = asyncio.get_running_loop(), self._target
        try:
            async with asyncio.timeout(self._timeout_s):
                _, made = await loop.create_connection(
                    lambda: _Connection(self._pool), target.host, target.port, ssl=self._tls
                )
        except TimeoutError:
            sample.error = "timeout"
            return None
        except (OSError, ssl.SSLError) as error:
            sample.error, sample.said = "refused", str(error)
            return None
        made.idle_since_s = now_s()
        return made

    def close(self) -> None:
        """Close idle connections."""
        for connection in list(self._pool):
            connection.close()
        self._pool.clear()
