"""Builds response bodies, SSE events and errors in OpenAI's format, as pure functions.

Refuses to carry internals outward: an unexpected exception becomes "internal error" and a
request id, never its own text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from bul.errors import BulError, EngineClosed, InvalidRequest, Overloaded
from bul.inference.contract import FinishReason
from bul.inference.resume import Sent

__all__ = [
    "DONE",
    "Choice",
    "Failure",
    "Reply",
    "Timing",
    "chunk",
    "error_body",
    "error_event",
    "failure_of",
    "finish_chunk",
    "model_list",
    "usage_chunk",
    "whole",
]

DONE: Final = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An error as a client sees it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Choice:
    """One generated sequence, filled in as its deltas arrive."""

    text: str = ""
    output_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seen from the server: from the last byte of the request to the first text, and to the end."""

    ttft_ms: float | None = None
    e2e_ms: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What every part of one answer has in common."""

    kind: str
    request_id: str
    model: str
    created_s: int
    shows_tokens: bool = False
    """Events say which tokens they are from, so that a router can have the answer resumed."""
    sent: Sent | None = None
    """Of an answer that goes on: what was sent before, elsewhere."""

    @property
    def id(self) -> str:
        if self.sent is not None and self.sent.id:
            return self.sent.id
        return f"{'chatcmpl' if self.kind == 'chat' else 'cmpl'}-{self.request_id}"


def whole(
    reply: Reply, choices: Sequence[Choice], prompt_tokens: int, cached_tokens: int, timing: Timing
) -> bytes:
    """The body of an answer that is not streamed. prompt_tokens: sum over the prompts."""
    body = _frame(reply, "chat.completion" if reply.kind == "chat" else "text_completion")
    body["choices"] = [
        {
            "index": index,
            **_whole_text(reply, choice.text),
            "logprobs": None,
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(choices)
    ]
    output_tokens = sum(choice.output_tokens for choice in choices)
    body["usage"] = _usage(prompt_tokens, cached_tokens, output_tokens)
    body["bul"] = _extension(timing)
    return _encode(body)


def chunk(
    reply: Reply, index: int, text: str, *, first: bool, tokens: tuple[int, ...] = ()
) -> bytes:
    """One SSE event with text; the first of a choice names the role."""
    more = _tokens(reply, tokens)
    if reply.kind == "chat":
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        return _event(reply, [{"index": index, "delta": delta, "finish_reason": None}], **more)
    part = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
    return _event(reply, [part], **more)


def finish_chunk(
    reply: Reply, index: int, finish_reason: FinishReason, tokens: tuple[int, ...] = ()
) -> bytes:
    """The last SSE event of a choice."""
    part: dict[str, Any] = {"index": index, "finish_reason": finish_reason}
    more = _tokens(reply, tokens)
    if reply.kind == "chat":
        return _event(reply, [part | {"delta": {}}], **more)
    return _event(reply, [part | {"text": "", "logprobs": None}], **more)


def usage_chunk(
    reply: Reply, prompt_tokens: int, cached_tokens: int, output_tokens: int, timing: Timing
) -> bytes:
    """The SSE event for `stream_options.include_usage`; it has no choices."""
    usage = _usage(prompt_tokens, cached_tokens, output_tokens)
    return _event(reply, [], usage=usage, bul=_extension(timing))


def model_list(model_id: str, engine_name: str, created_s: int) -> dict[str, Any]:
    """The one model; `owned_by` says which engine answers, so that nobody mistakes `timed`."""
    model = {
        "id": model_id,
        "object": "model",
        "created": created_s,
        "owned_by": f"bul-{engine_name}",
    }
    return {"object": "list", "data": [model]}


def error_body(failure: Failure) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return _encode(_error(failure))


def error_event(failure: Failure) -> bytes:
    """A failure after the stream has begun: an explicit event, then the stream ends unfinished."""
    return b"data: " + _encode(_error(failure)) + b"\n\n"


def failure_of(error: BaseException, request_id: str) -> Failure:
    """What a client may know of `error`. Never its traceback, never another type's text."""
    if isinstance(error, InvalidRequest):
        kind = "invalid_request_error"
        return Failure(
            status=error.status, message=str(error), type=kind, param=error.param, code=error.code
        )
    if isinstance(error, Overloaded):
        return Failure(
            status=429,
            message=str(error),
            type="overloaded_error",
            code="overloaded",
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, EngineClosed):
        message = "this replica is shutting down; try again"
        return Failure(
            status=503,
            message=message,
            type="unavailable_error",
            code="shutting_down",
            retry_after_s=1.0,
        )
    if isinstance(error, TimeoutError):
        message = "the request took longer than request_deadline_s allows"
        return Failure(status=504, message=message, type="timeout_error", code="deadline_exceeded")
    kind = "engine failure" if isinstance(error, BulError) else "internal error"
    message = f"{kind}; the log has it under request {request_id}"
    return Failure(status=500, message=message, type="server_error", code="internal_error")


def _frame(reply: Reply, kind: str) -> dict[str, Any]:
    sent = reply.sent
    created_s = sent.created if sent is not None and sent.id else reply.created_s
    return {"id": reply.id, "object": kind, "created": created_s, "model": reply.model}


def _tokens(reply: Reply, tokens: tuple[int, ...]) -> dict[str, Any]:
    return {"bul": {"tokens": tokens}} if reply.shows_tokens and tokens else {}


def _whole_text(reply: Reply, text: str) -> dict[str, Any]:
    if reply.kind == "chat":
        return {"message": {"role": "assistant", "content": text, "refusal": None}}
    return {"text": text}


def _event(reply: Reply, choices: list[dict[str, Any]], **more: Any) -> bytes:
    kind = "chat.completion.chunk" if reply.kind == "chat" else "text_completion"
    return b"data: " + _encode({**_frame(reply, kind), "choices": choices, **more}) + b"\n\n"


def _usage(prompt_tokens: int, cached_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _extension(timing: Timing) -> dict[str, float]:
    """Our own key beside OpenAI's: official clients keep it as an extra field."""
    given = {"ttft_ms": timing.ttft_ms, "e2e_ms": timing.e2e_ms}
    return {name: round(value, 3) for name, value in given.items() if value is not None}


def _error(failure: Failure) -> dict[str, Any]:
    return {
        "error": {
            "message": failure.message,
            "type": failure.type,
            "param": failure.param,
            "code": failure.code,
        }
    }
