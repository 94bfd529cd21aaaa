"""Text to tokens, tokens to bytes, chats to prompts, over a GGUF model's own vocabulary.

Refuses to let a message forge a turn: control tokens that are spelled out in a content stay text.
The template is rendered with marks where the contents go, split at its control tokens, and only
then are the contents put in, so that no text of a user is ever parsed for control tokens. Nor is
it handed to the template engine, which would cut it at a zero byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

from bul.errors import InvalidRequest
from bul.inference.binding import llama_cpp
from bul.inference.contract import ChatMessage

__all__ = ["Vocabulary"]

_MARK: Final = re.compile(r"@@content-(\d+)@@")
_BYTE_TEXT: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ATTR_CONTROL: Final = 1 << 3
_ATTR_USER_DEFINED: Final = 1 << 4
_KIND_BPE: Final = 2


def _byte_values() -> dict[str, int]:
    """GPT-2's table: each byte has a printable character, by which byte-level BPE spells it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    values = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(0x100) if byte not in printable)
    return values | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_VALUES: Final = _byte_values()


class Vocabulary:
    """A model's tokenizer and chat template. Immutable once built, so thread-safe."""

    def __init__(self, model: llama_cpp.LlamaModel) -> None:
        self._model = model
        self._vocab = model.get_vocab()
        self.size: int = self._vocab.n_vocab
        self._kind = int(self._vocab.vocab_type)
        self._texts: list[str] = [self._vocab.get_text(token) for token in range(self.size)]
        self._attrs = [int(self._vocab.get_attr(token)) for token in range(self.size)]
        self._control_ids = {
            text: token
            for token, (text, attr) in enumerate(zip(self._texts, self._attrs, strict=True))
            if attr & _ATTR_CONTROL and text
        }
        longest_first = sorted(self._control_ids, key=len, reverse=True)
        self._control_split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._bos: list[int] = [self._vocab.token_bos()] if self._vocab.get_add_bos() else []
        self._metadata: dict[str, str] = model.metadata()

    def digest(self) -> str:
        """Hex digest of every token's text and kind, and of the settings that cut text."""
        hasher = hashlib.blake2b(digest_size=32, person=b"bul-tokenizer")
        settings = [
            f"{key}={value}"
            for key, value in sorted(self._metadata.items())
            if key.startswith("tokenizer.") and key != "tokenizer.chat_template"
        ]
        tokens = [f"{a} {t}" for a, t in zip(self._attrs, self._texts, strict=True)]
        for part in [*settings, *tokens]:
            encoded = part.encode("utf-8", "surrogateescape")
            hasher.update(len(encoded).to_bytes(4, "little") + encoded)
        return hasher.hexdigest()

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text`, after the model's beginning-of-sequence token if it wants one."""
        return [*self._bos, *self._plain(text, special=special)]

    def tokenize_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt of a chat; see the module's first lines. Raises InvalidRequest."""
        tokens: list[int] = []
        for part in self._control_split.split(self._rendered(messages)):
            control = self._control_ids.get(part)
            if control is not None:
                tokens.append(control)
            elif part:
                tokens.extend(self._plain(_filled(part, messages), special=False))
        return tokens if tokens[:1] == self._bos else [*self._bos, *tokens]

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """The template applied, with the assistant's opening. Raises InvalidRequest."""
        return _filled(self._rendered(messages), messages)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, perhaps part of a character; b"" for control tokens.

        Raises IndexError for an id outside [0, size).
        """
        if token < 0:
            raise IndexError(token)
        text, attr = self._texts[token], self._attrs[token]
        if attr & _ATTR_CONTROL:
            return b""
        if attr & _ATTR_USER_DEFINED:
            return text.encode()
        if self._kind == _KIND_BPE:
            return bytes(_BYTE_VALUES[char] for char in text if char in _BYTE_VALUES)
        single = _BYTE_TEXT.fullmatch(text)
        if single is not None:
            return bytes([int(single[1], 16)])
        return text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def is_end(self, token: int) -> bool:
        """Whether the token ends generation."""
        return bool(self._vocab.is_eog(token))

    def _plain(self, text: str, *, special: bool) -> list[int]:
        # A lone surrogate, which JSON can carry, has no UTF-8; it becomes "?" instead of an error.
        clean = text.encode("utf-8", "replace").decode()
        ids: list[int] = self._vocab.tokenize(clean, False, special)
        return ids

    def _rendered(self, messages: Sequence[ChatMessage]) -> str:
        """The template with a mark for each content."""
        if "tokenizer.chat_template" not in self._metadata:
            raise _no_template("has no chat template")
        chat = [
            llama_cpp.LlamaChatMessage(m.role, f"@@content-{i}@@") for i, m in enumerate(messages)
        ]
        try:
            rendered: str = self._model.chat_apply_template(None, chat, True)
        except (ValueError, RuntimeError):
            raise _no_template("has a chat template that the engine does not know") from None
        return rendered


def _no_template(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model {what}",
        param="messages",
        code="no_chat_template",
        hint="use /v1/completions",
    )


def _filled(text: str, messages: Sequence[ChatMessage]) -> str:
    return _MARK.sub(lambda mark: messages[int(mark[1])].content, text)
