"""What a request asks for, as far as routing needs it: hints of its prefix, and its length.

Refuses to validate: a body that cannot be read has no hints, goes to the least loaded replica,
and gets its 400 there.
"""

from __future__ import annotations

import typing

import msgspec

from bul.blocks.text_chain import CHUNK_BYTES, chat_text, text_hints, text_root
from bul.router.http1 import Request

__all__ = ["BYTES_PER_TOKEN", "NO_PROMPT", "Prompt", "read_prompt"]

BYTES_PER_TOKEN = 4
"""Of English text, about; only the ratio of two costs depends on it."""
CHUNK_TOKENS = CHUNK_BYTES / BYTES_PER_TOKEN
TEXT_BYTES_MAX = 256 * 1024
"""Longer texts are told apart by their beginnings."""


class Prompt:
    """hints: of each full chunk from the beginning. tokens: estimated length of the whole.

    stream, max_tokens: of the answer, 0 if not said. may_repeat: asking two replicas does no harm.
    Not a frozen dataclass: one is made per request, and that would cost a microsecond.
    """

    __slots__ = ("hints", "max_tokens", "may_repeat", "stream", "tokens")

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

    def tokens_after(self, chunks: int) -> float:
        """Estimated tokens in [chunks, end): those to compute when the first ones are cached."""
        return self.tokens - chunks * CHUNK_TOKENS


NO_PROMPT = Prompt([], 0.0)


class _Message(msgspec.Struct):
    role: str = ""
    content: typing.Any = None


class _Chat(msgspec.Struct):
    messages: list[_Message]
    model: str = ""
    tools: typing.Any = None
    stream: typing.Any = None
    max_tokens: typing.Any = None
    max_completion_tokens: typing.Any = None


class _Completion(msgspec.Struct):
    prompt: str
    model: str = ""
    stream: typing.Any = None
    max_tokens: typing.Any = None
    max_completion_tokens: typing.Any = None


_CHAT = msgspec.json.Decoder(_Chat)
_COMPLETION = msgspec.json.Decoder(_Completion)


def read_prompt(request: Request, *, hints: bool = True) -> Prompt:
    """The prompt of a chat or a completion; `NO_PROMPT` for everything else.

    hints: without them, its prefix stays unknown.
    """
    target = request.target
    asked: _Chat | _Completion
    try:
        if target.startswith(b"/v1/chat/completions"):
            asked = chat = _CHAT.decode(request.body)
            text = chat_text([(found.role, found.content) for found in chat.messages], chat.tools)
        elif target.startswith(b"/v1/completions"):
            asked = _COMPLETION.decode(request.body)
            text = asked.prompt
        else:
            return NO_PROMPT
        data = text.encode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return NO_PROMPT
    chain: list[int] = []
    if hints:
        tenant = request.authorization[0] if request.authorization else b""
        chain = text_hints(text_root(asked.model, tenant), data[:TEXT_BYTES_MAX])
    most = asked.max_completion_tokens or asked.max_tokens
    return Prompt(
        chain,
        len(data) / BYTES_PER_TOKEN,
        stream=asked.stream is True,
        max_tokens=most if type(most) is int and most > 0 else 0,
        may_repeat=request.method == b"POST",
    )
