"""uvicorn's HTTP/1.1 protocol with limits: on heads, on whole messages, on time, on connections.

Refuses before it buffers. uvicorn bounds neither the head nor the time a client may take for it,
and answers broken HTTP in plain text; here it is an error in OpenAI's shape and the connection
closes, since what follows a broken message cannot be trusted.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bul.service import replies
from bul.service.replies import Failure

__all__ = ["BoundedProtocol"]

HEAD_BYTES_MAX: Final = 32 << 10
MESSAGE_BYTES_MAX: Final = 16 << 20
"""On the wire, head and chunk framing included. Four times the largest body: a client that sends
too much still gets to read its 413, but not for ever."""
HEAD_TIMEOUT_S: Final = 10.0
BODY_TIMEOUT_S: Final = 60.0
CONNECTIONS_MAX: Final = 4096

_MALFORMED = Failure(
    status=400, message="malformed HTTP", type="invalid_request_error", code="malformed_http"
)
_HEAD_TOO_LARGE = Failure(
    status=431,
    message=f"the request's head is larger than {HEAD_BYTES_MAX} bytes",
    type="invalid_request_error",
    code="headers_too_large",
)
_TOO_SLOW = Failure(
    status=408,
    message="the request did not arrive in time",
    type="invalid_request_error",
    code="request_timeout",
)
_TOO_MANY = Failure(
    status=503,
    message=f"{CONNECTIONS_MAX} connections are open",
    type="overloaded_error",
    code="overloaded",
)


class BoundedProtocol(HttpToolsProtocol):
    """One per connection; uvicorn makes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._field_bytes = 0
        self._message_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows it too
        self._expect_within(HEAD_TIMEOUT_S)
        if len(self.connections) > CONNECTIONS_MAX:
            self._refuse(_TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._message_bytes += len(data)
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        # Still in the head: what came is all head. One piece with a whole head and part of its
        # body is not caught here; its fields were counted one by one.
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._message_bytes > MESSAGE_BYTES_MAX:
            self.transport.close()
        elif self._in_head and self._deadline is None and self._is_idle():
            # A stray line break stops uvicorn's keep-alive timer without beginning a message.
            self._expect_within(HEAD_TIMEOUT_S)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._field_bytes = 0
        self._expect_within(HEAD_TIMEOUT_S)

    def on_url(self, url: bytes) -> None:
        self._count_field(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_field(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()  # raises for a URL that cannot be parsed
        self._in_head = False
        self._expect_within(BODY_TIMEOUT_S)

    def on_message_complete(self) -> None:
        self._expect_nothing()
        self._in_head = True  # of the next one
        self._head_bytes = 0
        self._message_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for anything that its parser or our limits do not take."""
        self._refuse(_HEAD_TOO_LARGE if self._field_bytes > HEAD_BYTES_MAX else _MALFORMED)

    def _count_field(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > HEAD_BYTES_MAX:
            # Raised through the parser, which stops; uvicorn then calls send_400_response.
            raise ValueError(_HEAD_TOO_LARGE.message)

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self._refuse, _TOO_SLOW)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _is_idle(self) -> bool:
        """No answer is owed for an earlier request."""
        return self.cycle is None or self.cycle.response_complete

    def _can_answer(self) -> bool:
        """Whether the next bytes on the wire can be the answer to what is wrong."""
        return self._is_idle() if self._in_head else not self.cycle.response_started

    def _refuse(self, failure: Failure) -> None:
        """Answer, unless that would land inside or after another answer; and close."""
        self._expect_nothing()
        if self.transport.is_closing():
            return
        if self._can_answer():
            body = replies.error_body(failure)
            head = (
                b"content-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            )
            self.transport.write(STATUS_LINE[failure.status] + head + body)
        self.transport.close()
