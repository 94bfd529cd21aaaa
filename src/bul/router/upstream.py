"""A connection to a replica: reads answers, and passes their bytes on as they came.

Refuses to understand more of an answer than where it ends. Bodies go through raw, chunk frames
included; llhttp only watches for the last one. A short answer with a known length is held until
it is whole: one write to the client instead of two, and a replica that dies in between can still
be replaced by another one.
"""

from __future__ import annotations

import asyncio
import typing

import httptools

from bul.router.http1 import HOP_BY_HOP, Request
from bul.router.replica import Replica

if typing.TYPE_CHECKING:
    from bul.router.exchange import Exchange
    from bul.router.hedge import Rival

__all__ = ["UpstreamConnection"]

HEAD_BYTES_MAX = 64 * 1024
HOLD_BYTES_MAX = 256 * 1024
"""Answers up to this length are passed on when they are whole."""

_DROPPED = HOP_BY_HOP | {b"x-bul-replica", b"content-length"}
_END = b"\r\n\r\n"


class UpstreamConnection(asyncio.Protocol):
    """Carries one exchange at a time; idle in its replica's list between two.

    since_s: when the present exchange, or the idleness after the last one, began.
    idled_s: how long it was idle before the present exchange.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.exchange: Exchange | Rival | None = None
        self.transport: asyncio.Transport | None = None
        self.idled_s = 0.0
        self.since_s = 0.0
        self.got_bytes = False
        self.status = 0
        self._parser = httptools.HttpResponseParser(self)
        self._held: list[bytes] = []
        self._in_body = False
        self._reset()

    def begin(self, exchange: Exchange | Rival, data: bytes) -> None:
        """Send a whole request; its answer goes to `exchange`."""
        assert self.exchange is None
        assert self.transport is not None
        self.exchange = exchange
        self._reset()
        self.transport.write(data)

    def close(self) -> None:
        """Drop the connection now; the exchange, if any, is not told."""
        self.exchange = None
        if self.transport is not None:
            self.transport.abort()

    @property
    def may_add_event(self) -> bool:
        """Whether a chunk of ours can follow what was passed on so far."""
        return self.is_event_stream and self._chunked and self._between_chunks

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = typing.cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.close()  # nobody asked
            return
        self.got_bytes = True
        if not self._in_body:
            body = self._read_head(exchange, data)
            if body is None:
                return
            data = body
        self._read_body(exchange, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            self.replica.lost(self)
        elif self._in_body and self._until_close and exc is None:
            exchange.ended(None, by_closing=True)
        else:
            exchange.upstream_lost(self, "the replica closed the connection")

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._messages += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-length":
            self._length = int(value)
        elif lower == b"transfer-encoding":
            self._chunked = True
        elif lower not in _DROPPED and not self._in_body:
            self._lines.append(b"%b: %b\r\n" % (name, value))
            if lower == b"content-type":
                self.is_event_stream = value.startswith(b"text/event-stream")

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_message_complete(self) -> None:
        self._complete = True

    # An answer, from its first byte to its last.

    def _reset(self) -> None:
        self.got_bytes = False
        self.is_event_stream = False
        self._buffer = b""
        self._between_chunks = True
        self._in_body = False
        self._until_close = False
        self._complete = False
        self._chunked = False
        self._length = -1
        self._left = 0
        self._messages = 0
        self._parser_keeps_alive = False
        self._lines: list[bytes] = []
        self._held.clear()

    def _read_head(self, exchange: Exchange | Rival, data: bytes) -> bytes | None:
        """Returns what follows the head, or None while there is nothing to pass on."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while True:
            end = data.find(_END)
            if end < 0:
                if len(data) > HEAD_BYTES_MAX:
                    self._garbage(exchange, "the replica's headers are too long")
                    return None
                self._buffer = data
                return None
            head, data = data[: end + 4], data[end + 4 :]
            if not self._parse_head(head):
                self._garbage(exchange, "the replica's answer is not HTTP")
                return None
            if self.status >= 200:
                break
            self._reset()  # 100 and 103 are not for this client
            self.got_bytes = True
        if exchange.refused_by(self):
            return None
        self._begin_body(exchange, head)
        return data

    def _parse_head(self, head: bytes) -> bool:
        try:
            self._parser.feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        self.status = self._parser.get_status_code()
        self._parser_keeps_alive = self._parser.should_keep_alive()
        return self.status != 101 and self._messages == 1

    def _begin_body(self, exchange: Exchange | Rival, head: bytes) -> None:
        request = exchange.request
        bodiless = request.method == b"HEAD" or self.status in (204, 304)
        self._until_close = not bodiless and not self._chunked and self._length < 0
        self._left = 0 if bodiless else max(self._length, 0)
        if request.method == b"HEAD":
            self._parser = httptools.HttpResponseParser(self)  # the old one waits for a body
        self._complete = self._complete or bodiless
        self._in_body = True
        known = bodiless or not (self._chunked or self._until_close)
        out = self._head_for(request, head)
        if known and self._left <= HOLD_BYTES_MAX:
            self._held.append(out)
        else:
            exchange.start(out)

    def _head_for(self, request: Request, head: bytes) -> bytes:
        framing = b""
        if self._chunked:
            framing = b"transfer-encoding: chunked\r\n"
        elif self._length >= 0:
            framing = b"content-length: %d\r\n" % self._length
        close = self._until_close or not request.keep_alive
        return b"".join(
            (
                b"HTTP/1.1",
                head[8 : head.find(b"\r\n") + 2],
                *self._lines,
                framing,
                self.replica.header_line,
                b"connection: close\r\n\r\n" if close else b"\r\n",
            )
        )

    def _read_body(self, exchange: Exchange | Rival, data: bytes) -> None:
        if data and not self._until_close and not self._feed(data):
            self._garbage(exchange, "the replica's answer is not framed as it said")
            return
        if self._held:
            self._held.append(data)
            if self._complete:
                exchange.start(b"".join(self._held))
                self._held.clear()
        elif data:
            exchange.write(data)
            self._between_chunks = self._between_chunks and data.endswith(b"\r\n")
        if self._complete:
            self._end(exchange)

    def _feed(self, data: bytes) -> bool:
        if self._complete:
            return False
        self._left -= len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return self._messages == 1 and (self._chunked or self._left >= 0)

    def _end(self, exchange: Exchange | Rival) -> None:
        self.exchange = None
        if self._parser_keeps_alive and not exchange.request.http10:
            exchange.ended(self)
        else:
            exchange.ended(None)
            self.close()

    def _garbage(self, exchange: Exchange | Rival, reason: str) -> None:
        self.exchange = None
        exchange.upstream_lost(self, reason)
        self.close()
