"""HTTP/1.1 requests: strict on the way in, written anew on the way out.

Refuses to pass on bytes that it did not understand. The grammar is llhttp's (httptools) in its
strict mode, which refuses CL with TE, doubled lengths, folded lines, bare LF and bad chunks;
here come the limits, the rules of a proxy (RFC 9112, 9110 section 7.6) and what llhttp leaves
open. A forwarded head is made from the parsed parts, so no two readings of one byte stream
(request smuggling) can exist between us and a replica.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import httptools
import msgspec

from bul.errors import InvalidRequest

__all__ = [
    "BODY_BYTES_MAX",
    "HEAD_BYTES_MAX",
    "HOP_BY_HOP",
    "Request",
    "RequestReader",
    "error_response",
    "response",
    "stream_error",
]

HEAD_BYTES_MAX = 32 * 1024
BODY_BYTES_MAX = 4 << 20

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
NO_REPLICA = b"x-bul-replica: none\r\n"
"""Of an answer that is the router's own."""
_OURS = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-bul-resume"}
"""Not passed on as they came; x-bul-resume is for routers alone (`inference/resume.py`)."""
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]{0,255}")
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*")
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_BODILESS_LINES = {b"GET", b"HEAD", b"OPTIONS", b"DELETE"}

_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


class Request:
    """One whole request. `lines` are the end-to-end headers, each with its CRLF; nobody changes
    the list. is_plain: nothing but a host and one length was said beside them.
    """

    __slots__ = (
        "authorization", "body", "http10", "is_plain", "keep_alive", "lines", "method", "target",
    )  # fmt: skip

    def __init__(self, method: bytes, target: bytes, *, http10: bool, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.http10 = http10
        self.keep_alive = keep_alive
        self.lines: list[bytes] = []
        self.authorization: list[bytes] = []
        self.body = b""
        self.is_plain = False

    def again(self, body: bytes) -> Request:
        """The same with another body."""
        request = Request(self.method, self.target, http10=False, keep_alive=True)
        request.lines = self.lines
        request.authorization = self.authorization
        request.body = body
        return request

    def serialise(
        self, authority: bytes, *, extra: bytes = b"", body: bytes | None = None
    ) -> bytes:
        """The request for the replica at `authority`, with a length and never chunked.

        A 1.0 client's request stays 1.0: then the answer cannot be chunked, which that client
        could not read. extra: header lines. body: instead of the client's own.
        """
        body = self.body if body is None else body
        version = b" HTTP/1.0\r\nhost: " if self.http10 else b" HTTP/1.1\r\nhost: "
        parts = [self.method, b" ", self.target, version, authority, b"\r\n", *self.lines]
        if body or self.method not in _BODILESS_LINES:
            parts.append(b"content-length: %d\r\n" % len(body))
        parts += (extra, b"\r\n", body)
        return b"".join(parts)


class RequestReader:
    """Bytes in, requests out; `on_request` is called within `feed`, in order.

    on_continue: called when a client waits for "100 Continue" before it sends a body.
    """

    def __init__(
        self, on_request: Callable[[Request], None], on_continue: Callable[[], None]
    ) -> None:
        self._on_request = on_request
        self._on_continue = on_continue
        self._parser = httptools.HttpRequestParser(self)
        self._error: InvalidRequest | None = None
        self.in_head = False
        self.in_body = False
        self._begun = 0
        self._body: list[bytes] = []
        self._request: Request | None = None
        self._reset()

    def feed(self, data: bytes) -> None:
        """Raise InvalidRequest, with the status to answer, when the stream cannot be read on."""
        # A head that began after other bytes of this read is counted from the next read on.
        counted = not self.in_body
        self._begun = 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            raise self._error or InvalidRequest(f"not HTTP: {error}", code="bad_http") from None
        if self.in_head:
            self._fed += len(data) if counted and self._begun < 2 else 0
            if self._fed > HEAD_BYTES_MAX:
                raise _head_too_large()

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._reset()
        self._begun += 1
        self.in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_body:
            return  # a trailer: read, and not passed on
        lower = name.lower()
        if lower in _OURS:
            self._special.append((lower, value.strip()))
            self._head_bytes += len(name) + len(value) + 4
            return
        if lower == b"authorization":
            self._authorization.append(value.strip())
        self._lines.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        self.in_head = False
        self.in_body = True
        try:
            self._request = self._checked()
        except InvalidRequest as error:
            self._error = error
            raise

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > BODY_BYTES_MAX:
            self._error = _body_too_large()
            raise self._error
        self._body.append(data)

    def on_message_complete(self) -> None:
        self.in_body = False
        request = self._request
        assert request is not None
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._request = None
        self._body = []
        self._on_request(request)

    # The rules.

    def _reset(self) -> None:
        self._fed = 0
        self._head_bytes = 0
        self._size = 0
        self._url = b""
        self._lines: list[bytes] = []
        self._special: list[tuple[bytes, bytes]] = []
        self._authorization: list[bytes] = []
        self._body = []
        self._request = None

    def _checked(self) -> Request:
        size = self._head_bytes + len(self._url) + sum(map(len, self._lines))
        if size > HEAD_BYTES_MAX:
            raise _head_too_large()
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise InvalidRequest(f"HTTP/{version} is not spoken here", code="bad_http")
        method = self._parser.get_method()
        if method not in _METHODS:
            name = method.decode("ascii", "replace")
            raise InvalidRequest(f"method {name} is not allowed", code="bad_method", status=405)
        if self._parser.should_upgrade():
            self._check_upgrade()
        if _TARGET.fullmatch(self._url) is None:
            raise InvalidRequest("the target must be a path", code="bad_target")
        request = Request(
            method,
            self._url,
            http10=version == "1.0",
            keep_alive=version == "1.1" and self._parser.should_keep_alive(),
        )
        request.lines = self._lines
        request.authorization = self._authorization
        self._check_special(request)
        names = sorted(name for name, _ in self._special)
        request.is_plain = request.keep_alive and names == [b"content-length", b"host"]
        return request

    def _check_special(self, request: Request) -> None:
        hosts = 0
        for name, value in self._special:
            if name == b"host":
                hosts += 1
                if _HOST.fullmatch(value) is None:
                    raise InvalidRequest("the Host header is not a host", code="bad_host")
            elif name == b"content-length":
                if len(value) > len(str(BODY_BYTES_MAX)) or int(value) > BODY_BYTES_MAX:
                    raise _body_too_large()
            elif name == b"transfer-encoding":
                if request.http10 or value.lower() != b"chunked":
                    raise InvalidRequest("Transfer-Encoding must be chunked", code="bad_http")
            elif name == b"connection":
                _drop_named(request, value)
            elif name == b"expect":
                self._expect(value)
        if hosts != 1 and not (hosts == 0 and request.http10):
            raise InvalidRequest("there must be one Host header", code="bad_host")

    def _expect(self, value: bytes) -> None:
        if value.lower() != b"100-continue":
            raise InvalidRequest("only 100-continue can be expected", code="bad_expect", status=417)
        self._on_continue()

    def _check_upgrade(self) -> None:
        """An Upgrade is ignored (RFC 9110 lets us); llhttp then stops before a body, so that one
        cannot be read.
        """
        if any(name in (b"content-length", b"transfer-encoding") for name, _ in self._special):
            raise InvalidRequest("an Upgrade cannot come with a body", code="bad_http")

    def _after_upgrade(self, rest: bytes) -> None:
        self._parser = httptools.HttpRequestParser(self)
        if rest:
            self.feed(rest)


def _drop_named(request: Request, value: bytes) -> None:
    """Remove the headers that the Connection header names (RFC 9110, 7.6.1)."""
    named = {part.strip().lower() for part in value.split(b",")} - {b"keep-alive", b"close", b""}
    if named:
        request.lines = [
            line for line in request.lines if line.partition(b":")[0].lower() not in named
        ]


def _head_too_large() -> InvalidRequest:
    return InvalidRequest(
        f"the headers are longer than {HEAD_BYTES_MAX} bytes", code="headers_too_large", status=431
    )


def _body_too_large() -> InvalidRequest:
    return InvalidRequest(
        f"the body is longer than {BODY_BYTES_MAX} bytes", code="body_too_large", status=413
    )


def response(
    status: int,
    body: bytes,
    *,
    kind: bytes = b"application/json",
    extra: bytes = b"",
    replica: bytes | None = None,
    close: bool,
) -> bytes:
    """A whole response of our own. `extra` are header lines, each with its CRLF, and so is
    `replica`: whose failure this is about.
    """
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b%b%b\r\n%b" % (
        status,
        _REASONS.get(status, b"Status"),
        kind,
        len(body),
        extra,
        replica or NO_REPLICA,
        b"connection: close\r\n" if close else b"",
        body,
    )


def error_response(
    status: int,
    message: str,
    code: str,
    *,
    close: bool,
    retry_after_s: int = 0,
    replica: bytes | None = None,
) -> bytes:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    document = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    extra = b"retry-after: %d\r\n" % retry_after_s if retry_after_s else b""
    body = msgspec.json.encode(document)
    return response(status, body, extra=extra, replica=replica, close=close)


def stream_error(reason: str) -> bytes:
    """The last event of a stream that broke off, and the end of its chunks."""
    error = {"message": reason, "type": "server_error", "param": None, "code": "stream_broken"}
    # Blank lines first: they end an event whose end did not come, so that ours stands alone.
    event = b"\n\ndata: " + msgspec.json.encode({"error": error}) + b"\n\n"
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
