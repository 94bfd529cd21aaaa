"""What a request asks for, as far as routing needs it: hints of its prefix, and its length.

Refuses to validate: a body that cannot be read has no hints, goes to the least loaded replica,
and gets its 400 there.
"""

from __future__ import annotations

import typing

import msgspec

from bul.blocks.text_chain import (
    CHUNK_BYTES,
    TEXT_BYTES_MAX,
    AskedChat,
    AskedCompletion,
    asked_text,
    hinted_bytes,
    text_hints,
    text_root,
)
from bul.router.http1 import Request

__all__ = [
    "BYTES_PER_TOKEN",
    "HINTED_TOKENS",
    "NO_PROMPT",
    "SESSION_BYTES_MAX",
    "TEXT_BYTES_MAX",
    "Prompt",
    "read_prompt",
    "session_of",
]

BYTES_PER_TOKEN = 4
"""Of English text, about; only the ratio of two costs depends on it."""
HINTED_TOKENS = tuple(
    hinted_bytes(hints) / BYTES_PER_TOKEN for hints in range(TEXT_BYTES_MAX // CHUNK_BYTES + 2)
)
"""Estimated tokens that the first so many hints of a prompt stand for."""
SESSION_BYTES_MAX = 256
"""Of a session's id: longer ones are told apart by their beginnings."""


class Prompt:
    """hints: of its beginnings (`text_chain.py`). tokens: estimated length of the whole.

    stream, max_tokens: of the answer, 0 if not said. may_repeat: asking two replicas does no harm.
    session: whose request it is, b"" if it did not say.
    Not a frozen dataclass: one is made per request, and that would cost a microsecond.
    """

    __slots__ = ("hints", "max_tokens", "may_repeat", "session", "stream", "tokens")

    def __init__(
        self,
        hints: list[int],
        tokens: float,
        *,
        stream: bool = False,
        max_tokens: int = 0,
        may_repeat: bool = False,
    ) -> None:
        self.hints = hints
        self.tokens = tokens
        self.stream = stream
        self.max_tokens = max_tokens
        self.may_repeat = may_repeat
        self.session = b""

    def tokens_after(self, hints: int) -> float:
        """Estimated tokens to compute where what the first so many hints stand for is cached."""
        return self.tokens - HINTED_TOKENS[hints]

    def of_session(self, session: bytes) -> Prompt:
        """The same one with its session's id; `NO_PROMPT` itself is never changed."""
        prompt = Prompt([], 0.0) if self is NO_PROMPT else self
        prompt.session = session
        return prompt


NO_PROMPT = Prompt([], 0.0)


class _Chat(AskedChat):
    stream: typing.Any = None
    max_tokens: typing.Any = None
    max_completion_tokens: typing.Any = None


class _Completion(AskedCompletion):
    stream: typing.Any = None
    max_tokens: typing.Any = None
    max_completion_tokens: typing.Any = None


_CHAT = msgspec.json.Decoder(_Chat)
_COMPLETION = msgspec.json.Decoder(_Completion)


def read_prompt(request: Request, *, hints: bool = True, secret: bytes = b"") -> Prompt:
    """The prompt of a chat or a completion; `NO_PROMPT` for everything else.

    hints: without them, its prefix stays unknown. secret: of the region, for the chain's root.
    """
    target = request.target
    asked: _Chat | _Completion
    try:
        if target.startswith(b"/v1/chat/completions"):
            asked = _CHAT.decode(request.body)
        elif target.startswith(b"/v1/completions"):
            asked = _COMPLETION.decode(request.body)
        else:
            return NO_PROMPT
        data = asked_text(asked).encode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return NO_PROMPT
    chain: list[int] = []
    if hints:
        tenant = request.authorization[0] if request.authorization else b""
        chain = text_hints(text_root(asked.model, tenant, secret), data)
    most = asked.max_completion_tokens or asked.max_tokens
    return Prompt(
        chain,
        len(data) / BYTES_PER_TOKEN,
        stream=asked.stream is True,
        max_tokens=most if type(most) is int and most > 0 else 0,
        may_repeat=request.method == b"POST",
    )


def session_of(request: Request, header: bytes, cookie: bytes) -> bytes:
    """The session's id from this header (its name in lower case), else from this cookie; b"" if
    there is neither.
    """
    found = b""
    for line in request.lines:
        name, _, value = line.partition(b":")
        lower = name.lower()
        if lower == header:
            return value.strip()[:SESSION_BYTES_MAX]
        if lower == b"cookie" and not found:
            found = _cookie(value, cookie)
    return found


def _cookie(value: bytes, wanted: bytes) -> bytes:
    for pair in value.split(b";"):
        name, _, content = pair.strip().partition(b"=")
        if name == wanted:
            return content.strip(b'"')[:SESSION_BYTES_MAX]
    return b""
