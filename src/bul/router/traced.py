"""An exchange that leaves a trace: a span for the request, one for its wait, one for each try.

Refuses to decide anything: every method does what `Exchange` does and says so. A router without a
tracer makes plain exchanges, so that those who do not trace do not pay. Of a request only its
method, its path if it is one of the API's, and figures are told.

    bul.router.request
      |- bul.router.queue        in line for room
      |- bul.router.try          first; its traceparent is what the replica goes on with
      `- bul.router.try          retry, stale, hedge or resume
"""

from __future__ import annotations

import typing
from collections.abc import Mapping

from bul.router.exchange import Exchange
from bul.router.http1 import Request
from bul.router.prompt import Prompt
from bul.router.quota import Charge
from bul.router.replica import Replica
from bul.router.upstream import UpstreamConnection
from bul.tracing import HEADER, Span, Tracer

if typing.TYPE_CHECKING:
    from bul.router.app import Router
    from bul.router.client import ClientConnection

__all__ = ["TracedExchange", "make_exchange"]

PATHS = frozenset((b"/v1/chat/completions", b"/v1/completions", b"/v1/models", b"/v1/embeddings"))
"""Told as they are; a path is a client's word, and may hold anything."""
PARENT = HEADER + b":"
STATE = b"tracestate:"


def make_exchange(
    tracer: Tracer,
    router: Router,
    client: ClientConnection,
    request: Request,
    prompt: Prompt,
    charge: Charge | None,
) -> Exchange:
    """Goes on with the client's trace if its traceparent is one, else begins one; what the replica
    gets says which, also that it is not sampled.
    """
    parents, lines = _without_parents(request.lines)
    span = tracer.start("bul.router.request", parents)
    if not span.parent_id:  # W3C: without its trace a tracestate means nothing
        lines = _without(STATE, lines)
    if not span.sampled and router.judge.explain is None:
        request.lines = [*lines, _line(span)]
        return Exchange(router, client, request, prompt, charge)
    path = request.target.partition(b"?")[0]
    span.set(
        {
            "http.request.method": request.method.decode(),
            "url.path": path.decode() if path in PATHS else "other",
            "bul.stream": prompt.stream,
            "bul.prompt_tokens_estimated": int(prompt.tokens),
            "bul.policy": router.config.policy,
        }
    )
    return TracedExchange(router, client, request, prompt, charge, span=span, lines=lines)


class TracedExchange(Exchange):
    """span: the request's. Its lines are written anew for each try, under that try's span."""

    __slots__ = ("_lines", "_queue", "_said", "_span", "_tries", "_tries_made")

    def __init__(
        self,
        router: Router,
        client: ClientConnection,
        request: Request,
        prompt: Prompt,
        charge: Charge | None,
        *,
        span: Span,
        lines: list[bytes],
    ) -> None:
        super().__init__(router, client, request, prompt, charge)
        self._span = span
        self._lines = lines
        self._queue: Span | None = None
        self._said: Mapping[str, typing.Any] = {}
        self._tries: dict[UpstreamConnection, Span] = {}
        self._tries_made = 0

    # Where to.

    def dispatch(self) -> None:
        if self._queue is not None:
            self._queue.end()
            self._queue = None
        with self._router.judge.asked_by(self._note_decision):
            super().dispatch()

    def _ask_another(self, upstream: UpstreamConnection, *, is_out: bool) -> None:
        with self._router.judge.asked_by(self._note_decision):
            super()._ask_another(upstream, is_out=is_out)

    def _wait_in_line(self) -> None:
        self._queue = self._span.child("bul.router.queue", {"bul.ahead": len(self._router.waiting)})
        super()._wait_in_line()

    def _note_decision(self, said: Mapping[str, typing.Any]) -> Mapping[str, object]:
        """What `--explain` shows beside it."""
        self._said = said
        return {"trace_id": self._span.trace_hex}

    # Tries.

    def _send(self, replica: Replica) -> None:
        span = self._span.child("bul.router.try", self._why(replica), kind="client")
        self.request.lines = [*self._lines, _line(span)]
        self._tries_made += 1
        super()._send(replica)
        upstream = self.upstream
        assert upstream is not None
        span.set(
            {
                "bul.ahead": upstream.ahead,
                "bul.to_compute_tokens_estimated": int(upstream.to_compute),
                "bul.connection_reused": upstream.transport is not None,
            }
        )
        self._tries[upstream] = span

    def _why(self, replica: Replica) -> dict[str, str | float | bool]:
        """What kind of try it is, and how its replica scored."""
        kind = "first"
        if self._stream is not None:
            kind = "resume"
        elif self._rival is not None:
            kind = "hedge"
        elif self._tries_made:
            kind = "retry" if self._tried else "stale"
        found: dict[str, str | float | bool] = {"bul.try": kind, "bul.replica": replica.url}
        candidates = self._said.get("candidates", ())
        found["bul.candidates"] = len(candidates)
        for candidate in candidates:
            if candidate["url"] == replica.url:
                found["bul.score"] = float(candidate["score"])
        return found

    def refused_by(self, upstream: UpstreamConnection) -> bool:
        span = self._tries.get(upstream)
        if span is not None:
            span.event("head")
            span.set({"http.response.status_code": upstream.status})
        return super().refused_by(upstream)

    def start(self, upstream: UpstreamConnection, data: bytes) -> None:
        self._span.event("first_byte", {"bul.replica": upstream.replica.url})
        super().start(upstream, data)

    def upstream_lost(self, upstream: UpstreamConnection, reason: str) -> None:
        self._fail_try(upstream, reason)
        super().upstream_lost(upstream, reason)

    def _failed(self, reason: str, *, status: int) -> None:
        if self.upstream is not None:
            self._fail_try(self.upstream, reason)
        super()._failed(reason, status=status)

    def go_on_elsewhere(self, upstream: UpstreamConnection) -> bool:
        self._span.event("stream_left", {"bul.replica": upstream.replica.url})
        return super().go_on_elsewhere(upstream)

    def _fail_try(self, upstream: UpstreamConnection, reason: str) -> None:
        span = self._tries.get(upstream)
        if span is not None:
            span.fail(reason)

    def _release(self, *, close: bool) -> None:
        upstream = self.upstream
        super()._release(close=close)
        self._end_try(upstream)

    def _rival_lost(self) -> None:
        rival = self._rival
        super()._rival_lost()
        self._end_try(rival)

    def _end_try(self, upstream: UpstreamConnection | None) -> None:
        span = None if upstream is None else self._tries.pop(upstream, None)
        if span is not None:
            span.end()

    # Ends.

    def ended(
        self, upstream: UpstreamConnection, *, reusable: bool, by_closing: bool = False
    ) -> None:
        if (span := self._tries.get(upstream)) is not None:
            span.set({"bul.answered": True})
        self._end_try(upstream)
        self._end("", upstream.status)
        super().ended(upstream, reusable=reusable, by_closing=by_closing)

    def cancel(self) -> None:
        super().cancel()
        self._end("the client left")

    def _answer(self, status: int, reason: str, code: str, **more: typing.Any) -> None:
        if not self.started:
            self._end(code, status)
        super()._answer(status, reason, code, **more)

    def _end_stream(self) -> None:
        self._end("", 200)
        super()._end_stream()

    def _break_off(self, reason: str, *, add_event: bool) -> None:
        self._end("stream_broken")
        super()._break_off(reason, add_event=add_event)

    def _end(self, error: str, status: int = 0) -> None:
        """`status` is what the client got; an answer that broke off had one before."""
        span = self._span
        if self._queue is not None:
            self._queue.end()
            self._queue = None
        if status:
            span.set({"http.response.status_code": status})
        span.set({"bul.tries": self._tries_made})
        if error:
            span.fail(error)
        elif status >= 500:
            span.fail(f"status {status}")
        span.end()


def _without_parents(lines: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The values of traceparent, and the other lines."""
    others = _without(PARENT, lines)
    if others is lines:
        return [], lines
    end = len(PARENT)
    return [line[end:].strip() for line in lines if line[:end].lower() == PARENT], others


def _without(name: bytes, lines: list[bytes]) -> list[bytes]:
    """`lines` themselves if none of them begins with `name`."""
    end = len(name)
    for line in lines:
        if line[:end].lower() == name:
            return [line for line in lines if line[:end].lower() != name]
    return lines


def _line(span: Span) -> bytes:
    return b"%b: %b\r\n" % (HEADER, span.header)
