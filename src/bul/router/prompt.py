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

    Not a frozen dataclass: one is made per request, and that would cost a microsecond.
    """

    __slots__ = ("hints", "tokens")

    def __init__(self, hints: list[int], tokens: float) -> None:
        self.hints = hints
        self.tokens = tokens

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


class _Completion(msgspec.Struct):
    prompt: str
    model: str = ""


_CHAT = msgspec.json.Decoder(_Chat)
_COMPLETION = msgspec.json.Decoder(_Completion)


def read_prompt(request: Request) -> Prompt:
    """The prompt of a chat or a completion; `NO_PROMPT` for everything else."""
    target = request.target
    try:
        if target.startswith(b"/v1/chat/completions"):
            chat = _CHAT.decode(request.body)
            model = chat.model
            text = chat_text([(found.role, found.content) for found in chat.messages], chat.tools)
        elif target.startswith(b"/v1/completions"):
            completion = _COMPLETION.decode(request.body)
            model, text = completion.model, completion.prompt
        else:
            return NO_PROMPT
        data = text.encode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return NO_PROMPT
    tenant = request.authorization[0] if request.authorization else b""
    hints = text_hints(text_root(model, tenant), data[:TEXT_BYTES_MAX])
    return Prompt(hints, len(data) / BYTES_PER_TOKEN)
