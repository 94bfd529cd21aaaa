"""A connection to a replica: reads answers, and passes their bytes on as they came.

Refuses to understand more of an answer than where it ends. Bodies go through raw, chunk frames
included; llhttp only watches for the last one. A short answer with a known length is held until
it is whole: one write to the client instead of two, and a replica that dies in between can still
be replaced by another one. Of a stream that can be resumed only whole events go through, so that
what another replica sends fits on.
"""

from __future__ import annotations

import asyncio
import typing

import httptools

from bul.inference.resume import HEADER as RESUME_HEADER
from bul.router.health import LATE_S, VANISHED, end_if_vanished
from bul.router.http1 import HOP_BY_HOP, Request
from bul.router.replica import Replica
from bul.router.stream_record import EVENT_END

if typing.TYPE_CHECKING:
    from bul.router.exchange import Exchange

__all__ = ["UpstreamConnection"]

HEAD_BYTES_MAX = 64 * 1024
HOLD_BYTES_MAX = 256 * 1024
"""Answers up to this length are passed on when they are whole."""
TAIL_BYTES_MAX = 256 * 1024
"""Of an event that is not whole yet; a longer one is passed on, and cannot be resumed after."""

STALE_S = 0.05
STALE_IDLE_S = 0.5
"""A connection idle for longer than this, that breaks within STALE_S of a request, had been closed
before that request came: keep-alive timers are seconds, journeys are milliseconds.
"""

_DROPPED = HOP_BY_HOP | {b"x-bul-replica", b"content-length", RESUME_HEADER}
_END = b"\r\n\r\n"
_LEAVES = b'"code":"shutting_down"'
"""In the last event of one that stops before its streams end; a text's quotes would be escaped."""


class UpstreamConnection(asyncio.Protocol):
    """Carries one try of one exchange at a time; idle in its replica's list between two.

    since_s: when the present try was sent, or the idleness after the last one began.
    idled_s: how long it was idle before the present try. ahead, to_compute: requests that the
    replica had under way, and estimated prompt tokens left to it, when the try was sent.
    tells_tokens: the answer is a stream of ours that says which tokens its events are from.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.exchange: Exchange | None = None
        self.transport: asyncio.Transport | None = None
        self.idled_s = 0.0
        self.since_s = 0.0
        self.ahead = 0
        self.to_compute = 0.0
        self.got_bytes = False
        self.status = 0
        self._dialling: asyncio.Task[None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._held: list[bytes] = []
        self._in_body = False
        self._reset()

    def begin(
        self, exchange: Exchange, data: bytes, *, goes_on: bool, dial_within_s: float
    ) -> None:
        """Send a whole request; its answer goes to `exchange`. A new connection is made first.

        goes_on: the answer continues one whose head the client has, so it must be a stream.
        """
        assert self.exchange is None
        if self.got_bytes:
            self._reset()
        self.exchange = exchange
        self._goes_on = goes_on
        if self.transport is not None:
            self.transport.write(data)
        else:
            loop = asyncio.get_running_loop()
            self._dialling = loop.create_task(self._dial(data, dial_within_s))

    def close(self) -> None:
        """Drop the connection now; the exchange, if any, is not told."""
        self.exchange = None
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self.transport is not None:
            self.transport.abort()

    async def _dial(self, data: bytes, within_s: float) -> None:
        if not await self._connected(within_s):
            exchange, self.exchange = self.exchange, None
            if exchange is not None:
                self._dialling = None
                exchange.unreachable(self)
            return
        self._dialling = None
        if self.exchange is None or self.transport is None:
            self.close()  # given up in the moment in which it came
            return
        self.since_s = asyncio.get_running_loop().time()
        self.transport.write(data)

    async def _connected(self, within_s: float) -> bool:
        """A deadline that comes late itself says that our loop stood still and looked at no
        socket: it is set once more.
        """
        loop, replica = asyncio.get_running_loop(), self.replica
        due_s = loop.time() + within_s
        dial = loop.create_task(loop.create_connection(lambda: self, replica.host, replica.port))
        try:
            done, _ = await asyncio.wait({dial}, timeout=within_s)
            if not done and loop.time() > due_s + LATE_S:
                done, _ = await asyncio.wait({dial}, timeout=within_s)
        finally:
            dial.cancel()
            dial.add_done_callback(_hear_out)
        return bool(done) and dial.exception() is None

    @property
    def may_add_event(self) -> bool:
        """Whether a chunk of ours can follow what was passed on so far."""
        return self._by_events and (self._at_event_end or self._between_chunks)

    def was_stale(self, now_s: float) -> bool:
        """Whether it had been closed before the try came that has now found it so."""
        if self.got_bytes or self.idled_s < STALE_IDLE_S:
            return False
        return now_s - self.since_s < STALE_S

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = typing.cast("asyncio.Transport", transport)
        end_if_vanished(transport)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.close()  # nobody asked
            return
        if not self.got_bytes and not self._goes_on:
            known = self.replica.answers.find(data)
            if known is not None and exchange.request.method != b"HEAD":
                self._pass_whole(exchange, *known)
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
            exchange.ended(self, reusable=False, by_closing=True)
        else:
            gone = isinstance(exc, TimeoutError)
            exchange.upstream_lost(self, VANISHED if gone else "the replica closed the connection")

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
        elif lower == RESUME_HEADER:
            self.tells_tokens = value == b"tokens"

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
        self.tells_tokens = False
        self._goes_on = False
        self._by_events = False
        self._at_event_end = True
        self._tail = b""
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

    def _read_head(self, exchange: Exchange, data: bytes) -> bytes | None:
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
        self._by_events = self._chunked and self.is_event_stream
        self.tells_tokens = self.tells_tokens and self._by_events and self.status == 200
        if self._goes_on and self.status not in (429, 503) and not self.tells_tokens:
            exchange.will_not_go_on(self)
            return None
        if exchange.refused_by(self):
            return None
        self._begin_body(exchange, head)
        if self.status == 200 and self._length == len(data) and self._parser_keeps_alive:
            self._remember(head, data)
        return data

    def _parse_head(self, head: bytes) -> bool:
        try:
            self._parser.feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        self.status = self._parser.get_status_code()
        self._parser_keeps_alive = self._parser.should_keep_alive()
        return self.status != 101 and self._messages == 1

    def _remember(self, head: bytes, body: bytes) -> None:
        """The next answer under this head need not be read."""
        if self._chunked or head.lower().count(b"content-length") != 1:
            return
        line = head[8 : head.find(b"\r\n") + 2]
        before = b"".join((b"HTTP/1.1", line, *self._lines, b"content-length: "))
        self.replica.answers.remember(head + body, (before, b"\r\n" + self.replica.header_line))

    def _pass_whole(self, exchange: Exchange, head: tuple[bytes, bytes], body: bytes) -> None:
        """The same as all below, for an answer that came in one piece under a head that is known.
        What `_reset` sets stays as it is.
        """
        self.status = 200
        self._parser_keeps_alive = True
        exchange.refused_by(self)  # never a 200, but it ends the other try
        close = not exchange.request.keep_alive
        end = b"connection: close\r\n\r\n" if close else b"\r\n"
        exchange.start(self, b"%b%d%b%b%b" % (head[0], len(body), head[1], end, body))
        self._end(exchange)

    def _begin_body(self, exchange: Exchange, head: bytes) -> None:
        request = exchange.request
        bodiless = request.method == b"HEAD" or self.status in (204, 304)
        self._until_close = not bodiless and not self._chunked and self._length < 0
        self._left = 0 if bodiless else max(self._length, 0)
        if request.method == b"HEAD":
            self._parser = httptools.HttpResponseParser(self)  # the old one waits for a body
        self._complete = self._complete or bodiless
        self._in_body = True
        known = bodiless or not (self._chunked or self._until_close)
        if self._goes_on:
            return
        out = self._head_for(request, head)
        if known and self._left <= HOLD_BYTES_MAX:
            self._held.append(out)
        else:
            exchange.start(self, out)

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

    def _read_body(self, exchange: Exchange, data: bytes) -> None:
        if data and not self._until_close and not self._feed(data):
            self._garbage(exchange, "the replica's answer is not framed as it said")
            return
        if self._held:
            self._held.append(data)
            if self._complete:
                exchange.start(self, b"".join(self._held))
                self._held.clear()
        elif self._by_events:
            if self._complete and self.tells_tokens and _LEAVES in data:
                self.exchange = None
                if exchange.go_on_elsewhere(self):
                    return
                self.exchange = exchange
            self._pass_events(exchange, data)
        elif data:
            exchange.write(self, data)
        if self._complete:
            self._end(exchange)

    def _pass_events(self, exchange: Exchange, data: bytes) -> None:
        """What is whole goes on; the rest waits for its end, or to be let go (`let_go`)."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if self._complete or data.endswith(EVENT_END):
            if data:
                exchange.write(self, data)
            self._at_event_end = True
            return
        end = data.rfind(EVENT_END)
        if len(data) - end > TAIL_BYTES_MAX:
            self._tail = data
            self.let_go(exchange)
            return
        if end >= 0:
            end += len(EVENT_END)
            exchange.write(self, data[:end])
            self._at_event_end = True
            data = data[end:]
        self._tail = data

    def let_go(self, exchange: Exchange) -> None:
        """Pass on what is not known to be whole: this server frames its events in another way."""
        data, self._tail = self._tail, b""
        if data:
            self.tells_tokens = self._at_event_end = False
            exchange.cannot_resume()
            exchange.write(self, data)
            self._between_chunks = self._between_chunks and data.endswith(b"\r\n")

    def _feed(self, data: bytes) -> bool:
        if self._complete:
            return False
        self._left -= len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return self._messages == 1 and (self._chunked or self._left >= 0)

    def _end(self, exchange: Exchange) -> None:
        self.exchange = None
        reusable = self._parser_keeps_alive and not exchange.request.http10
        exchange.ended(self, reusable=reusable)
        if not reusable:
            self.close()

    def _garbage(self, exchange: Exchange, reason: str) -> None:
        self.exchange = None
        exchange.upstream_lost(self, reason)
        self.close()


def _hear_out(task: asyncio.Task[object]) -> None:
    """Of a dial that was given up in the moment in which it failed, nobody asks the reason."""
    if not task.cancelled():
        task.exception()
