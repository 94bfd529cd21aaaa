"""The shipped conversations over real text, as `bul up` and `bul demo` play them."""

from __future__ import annotations

import tomllib
from importlib import resources

import msgspec

__all__ = ["Conversation", "conversations", "opening"]

FILE = "conversations.toml"


class Conversation(msgspec.Struct, frozen=True):
    """A document and the questions about it, one per turn."""

    title: str
    document: str
    questions: tuple[str, ...]


class _File(msgspec.Struct, frozen=True):
    conversation: tuple[Conversation, ...]


def conversations() -> tuple[Conversation, ...]:
    """All of them, in the order of the file."""
    text = resources.files("bul.cli").joinpath(FILE).read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), _File).conversation


def opening(conversation: Conversation) -> list[dict[str, str]]:
    """The messages of the first turn: the document, then the first question."""
    content = f"{conversation.document.strip()}\n\n{conversation.questions[0]}"
    return [{"role": "user", "content": content}]
