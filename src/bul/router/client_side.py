"""The half of an exchange that faces its client: in line, read slowly, shed, broken off.

Refuses to end a begun answer as if it were whole: a stream of events gets an error event, any
other answer a broken connection.
"""

from __future__ import annotations

import math
import typing

from bul.router.http1 import Request, error_response, stream_error
from bul.router.prompt import Prompt
from bul.router.quota import estimated_tokens, priority_of
from bul.router.stream_record import LAST_CHUNK
from bul.router.waiting import Place

if typing.TYPE_CHECKING:
    from bul.router.app import Router
    from bul.router.client import ClientConnection
    from bul.router.exchange import Exchange
    from bul.router.upstream import UpstreamConnection

__all__ = ["ClientSide"]

RETRY_AFTER_S = 1


class ClientSide:
    """What happens to a client where no replica decides it.

    upstream: the try that shall answer; None in line. last_s: when something last came, as coarse
    as the sweep. started: a byte of an answer has gone to the client.
    """

    __slots__ = ("_client", "_in_line", "_router", "deadline_s", "last_s", "started", "upstream")
    request: Request
    prompt: Prompt

    def __init__(self, router: Router, client: ClientConnection) -> None:
        self._router = router
        self._client: ClientConnection | None = client
        self._in_line = False
        self.deadline_s = math.inf
        self.started = False
        self.upstream: UpstreamConnection | None = None
        self.last_s = router.coarse_s

    def pause(self) -> None:
        """The client reads slowly: let the replica's socket fill up."""
        if self.upstream is not None and self.upstream.transport is not None:
            self.upstream.transport.pause_reading()

    def resume(self) -> None:
        self.last_s = self._router.coarse_s
        if self.upstream is not None and self.upstream.transport is not None:
            self.upstream.transport.resume_reading()

    def _wait_in_line(self) -> None:
        router, exchange = self._router, typing.cast("Exchange", self)
        flow = router.quotas.flow_of(self.request, router.coarse_s)
        place = Place(priority_of(self.request), flow, estimated_tokens(self.prompt))
        self._in_line = True
        router.queued += 1
        self.deadline_s = router.coarse_s + router.waiting.deadline_s
        turned_away = router.waiting.join(exchange, place)
        if turned_away is not None:
            turned_away.shed()

    def _leave_line(self) -> None:
        if self._in_line:
            self._in_line = False
            self._router.waiting.leave(typing.cast("Exchange", self))

    def shed(self) -> None:
        """Turn the client away: there is no place in line, or not in time."""
        self._leave_line()
        if not self._router.ready:
            self._no_replica()
            return
        self._router.shed += 1
        retry_after_s = self._router.waiting.retry_after_s()
        message = "all replicas are busy; try again later"
        self._answer(429, message, "overloaded", retry_after_s=retry_after_s)

    def _no_replica(self) -> None:
        self._router.refused += 1
        self._answer(503, "no replica is ready", "no_replica", retry_after_s=RETRY_AFTER_S)

    def _answer(self, status: int, reason: str, code: str, **more: typing.Any) -> None:
        if self.started:  # a stream that should have gone on elsewhere
            self._break_off(reason, add_event=True)
            return
        client, self._client = self._client, None
        if client is not None:
            close = not self.request.keep_alive
            client.write(error_response(status, reason, code, close=close, **more))
            client.answered(close=close)

    def _end_stream(self) -> None:
        """All events were sent, only the end of the stream was not."""
        client, self._client = self._client, None
        self._router.completed += 1
        if client is not None:
            client.write(LAST_CHUNK)
            client.answered(close=not self.request.keep_alive)

    def _break_off(self, reason: str, *, add_event: bool) -> None:
        client, self._client = self._client, None
        self._router.broken += 1
        if client is None:
            return
        if add_event:
            client.write(stream_error(reason))
            client.answered(close=True)
        else:
            client.abort()
