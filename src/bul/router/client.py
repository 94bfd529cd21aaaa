"""A client's connection: requests in, one after the other, answers out, nothing without a limit.

Refuses to read on while a request is under way: what a client sends meanwhile (pipelining) is
kept up to a limit, then its socket fills up. Each stage has its deadline, which a sweep over all
connections enforces: ten thousand silent clients cost ten thousand comparisons a second.
"""

from __future__ import annotations

import asyncio
import collections
import math
import typing

from bul.errors import InvalidRequest
from bul.router.exchange import Exchange
from bul.router.http1 import Request, RequestReader, error_response

if typing.TYPE_CHECKING:
    from bul.router.app import Router

__all__ = ["ClientConnection"]

EARLY_BYTES_MAX = 64 * 1024
"""Kept of what comes while an answer is under way."""
PIPELINED_MAX = 32
"""Requests that one read may bring."""
LINGER_S = 2.0
"""After a refusal the rest of the request is read and dropped, so that the answer arrives."""
FLUSH_S = 30.0
"""For a closing client to take what was written."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientConnection(asyncio.Protocol):
    """One accepted connection of `router`."""

    def __init__(self, router: Router) -> None:
        self.write_paused = False
        self.deadline_s = math.inf
        self.exchange: Exchange | None = None
        self._router = router
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader(self._on_request, self._on_continue)
        self._requests: collections.deque[Request] = collections.deque()
        self._refusal: InvalidRequest | None = None
        self._early = bytearray()
        self._closing = False
        self._turning = False
        self._stage = ""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = typing.cast("asyncio.Transport", transport)
        if not self._router.admit(self):
            self._closing = True
            message = "the router has no connection left"
            self.write(error_response(503, message, "too_many_connections", close=True))
            self._transport.close()
            return
        self._set_stage("head", self._router.config.header_timeout_s)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self.exchange is not None or self.write_paused:
            self._early += data
            if len(self._early) > EARLY_BYTES_MAX and self._transport is not None:
                self._transport.pause_reading()
            return
        reader = self._reader
        known = None
        if not (reader.in_head or reader.in_body or self._requests):
            known = self._router.heads.request(data)
        if known is not None:
            self._requests.append(known)
        else:
            self._feed(data)
        self._turn()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closing = True
        self._requests.clear()
        self._router.left(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.cancel()

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.resume()
        else:
            self._turn()

    # What an exchange calls.

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, *, close: bool) -> None:
        """The answer is written; the next request may come, unless `close`."""
        self.exchange = None
        if close:
            self._close()
        else:
            self._turn()

    def abort(self) -> None:
        """Break the connection, so that nobody takes what was sent for the whole."""
        self.exchange = None
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # What the router calls.

    def expire(self) -> None:
        """The deadline of this stage has passed."""
        if self._closing or self._transport is None:
            self.abort()
        elif self._stage == "idle":
            self._close()
        else:
            self._router.slow_clients += 1
            self._refuse(InvalidRequest("the request came too slowly", code="slow", status=408))

    def end_when_idle(self) -> None:
        """The router stops: no further request is read."""
        if self.exchange is None:
            self._close()
        else:
            self.exchange.request.keep_alive = False

    # What the reader calls.

    def _on_request(self, request: Request) -> None:
        if len(self._requests) < PIPELINED_MAX:
            self._requests.append(request)
        elif self._refusal is None:
            self._refusal = InvalidRequest(
                f"more than {PIPELINED_MAX} requests at once", code="pipelining", status=429
            )

    def _on_continue(self) -> None:
        if not self._requests:  # else its place in the order of answers is not yet known
            self.write(_CONTINUE)

    # The rest is its own.

    def _feed(self, data: bytes) -> None:
        begins = not (self._reader.in_head or self._reader.in_body or self._requests)
        try:
            self._reader.feed(data)
            if begins and len(self._requests) == 1:
                self._router.heads.learn(data, self._requests[0])
        except InvalidRequest as error:
            self._refusal = self._refusal or error

    def _turn(self) -> None:
        """Take what is next, until something is under way or nothing is left. Not re-entrant:
        an answer that is there at once must not call us deeper and deeper.
        """
        if self._turning:
            return
        self._turning = True
        while self.exchange is None and not self._closing and not self.write_paused:
            if self._requests:
                self._router.handle(self, self._requests.popleft())
            elif self._refusal is not None:
                self._refuse(self._refusal)
            elif self._early:
                self._take_early()
            else:
                self._wait()
                break
        self._turning = False

    def _take_early(self) -> None:
        data = bytes(self._early)
        self._early.clear()
        if self._transport is not None:
            self._transport.resume_reading()
        self._feed(data)

    def _wait(self) -> None:
        config = self._router.config
        if self._reader.in_head:
            self._set_stage("head", config.header_timeout_s)
        elif self._reader.in_body:
            self._set_stage("body", config.body_timeout_s)
        else:
            self._stage = "idle"
            self.deadline_s = self._router.coarse_s + config.idle_timeout_s

    def _set_stage(self, stage: str, seconds: float) -> None:
        """A stage's time runs from its beginning: more bytes do not win more time."""
        if stage != self._stage:
            self._stage = stage
            self.deadline_s = self._router.coarse_s + seconds

    def _refuse(self, error: InvalidRequest) -> None:
        """Answer, then drop what still comes for a moment: closing at once would make the kernel
        send a reset, which can overtake the answer.
        """
        self._router.invalid += 1
        self._closing = True
        self._requests.clear()
        if self._transport is None:
            return
        code = error.code or "invalid_request"
        self.write(error_response(error.status, str(error), code, close=True))
        self._transport.write_eof()
        self._transport.resume_reading()
        self.deadline_s = self._router.coarse_s + LINGER_S

    def _close(self) -> None:
        self._closing = True
        self.deadline_s = self._router.coarse_s + FLUSH_S
        if self._transport is not None:
            self._transport.close()
