"""Prefix hints without tokenising: chained hashes over a prompt's canonical text.

Refuses to be a key: equal hints only say that a replica probably holds a prefix, so a collision
costs a detour and never a wrong block (those have keys of their own, `chain.py`). Routers and
replicas call the same functions, so both speak of the same text.

    root   = first 8 bytes of BLAKE2b(tenant, model), keyed with the region's secret
    hint_0 = h(text [0, 512), seed root)                     a short prompt has one, too
    hint_i = h(text [(i-1)*1024, i*1024), seed hint_{i-1})

A kilobyte is some 250 tokens: what a replica holds beyond its last hint is believed to be
computed again, which costs a router's estimate less than twice as many hints cost it time.

h is xxh3-64 with the parent as its seed: 8 kB of text in 2 us, where BLAKE2b takes 20. It is no
cryptographic hash, so what keeps a published hint from telling whether a guessed prompt was asked
is the root: a tenant can work out its own, from its own prompts, and nobody else's.
"""

from __future__ import annotations

import functools
import hashlib
import typing
from collections.abc import Iterable, Sequence

import msgspec
import xxhash

__all__ = [
    "CHUNK_BYTES",
    "FIRST_BYTES",
    "TEXT_BYTES_MAX",
    "AskedChat",
    "AskedCompletion",
    "asked_text",
    "chat_text",
    "hinted_bytes",
    "text_hints",
    "text_root",
    "text_secret",
]

FIRST_BYTES = 512
CHUNK_BYTES = 1024
TEXT_BYTES_MAX = 256 * 1024
"""Longer texts are told apart by their beginnings."""
ALIASES = {"developer": "system"}
"""Roles that a replica takes for another one: they make the same prompt."""
_FIELD = "\x1f"
_END = "\x1e"


class AskedMessage(msgspec.Struct):
    """A message as far as its text goes."""

    role: str = ""
    content: typing.Any = None


class AskedChat(msgspec.Struct):
    """The body of a chat as far as its text goes: what routers and replicas both decode."""

    messages: list[AskedMessage]
    model: str = ""
    tools: typing.Any = None


class AskedCompletion(msgspec.Struct):
    """The body of a completion of one text."""

    prompt: str
    model: str = ""


def text_secret(cache_secret: str) -> bytes:
    """The key of a region's chain roots, made from its secret; b"" without one."""
    if not cache_secret:
        return b""
    return hashlib.blake2b(cache_secret.encode(), person=b"bul-text-chain").digest()


@functools.lru_cache(maxsize=4096)
def text_root(model: str, tenant: bytes, secret: bytes = b"") -> int:
    """Where a chain begins. `tenant` is the Authorization header's value, empty without one:
    hints of different keys never meet. secret: of `text_secret`, at most 64 bytes.
    """
    keyed = hashlib.blake2b(tenant, digest_size=8, key=secret)
    keyed.update(b"\x00")
    keyed.update(model.encode())
    return int.from_bytes(keyed.digest(), "big")


def text_hints(root: int, text: bytes) -> list[int]:
    """One hint per full chunk of the first TEXT_BYTES_MAX of `text`, in order, after the one of its
    first bytes; a partial last chunk has none.
    """
    digest, size = xxhash.xxh3_64_intdigest, CHUNK_BYTES
    end = min(len(text), TEXT_BYTES_MAX)
    if end < FIRST_BYTES:
        return []
    parent = digest(text[:FIRST_BYTES], root)
    hints = [parent]
    for start in range(0, end - size + 1, size):
        parent = digest(text[start : start + size], parent)
        hints.append(parent)
    return hints


def hinted_bytes(hints: int) -> int:
    """How many bytes of a text its first so many hints stand for."""
    return (hints - 1) * CHUNK_BYTES if hints > 1 else hints * FIRST_BYTES


def asked_text(asked: AskedChat | AskedCompletion) -> str:
    """The canonical text of a request. Of a chat: roles and contents, in order, with marks that
    no content can forge by being moved; tools come first, as chat templates render them.
    """
    if isinstance(asked, AskedCompletion):
        return asked.prompt
    parts = [msgspec.json.encode(asked.tools).decode(), _END] if asked.tools else []
    for message in asked.messages:
        role, content = message.role, message.content
        parts += (
            ALIASES.get(role, role),
            _FIELD,
            content if isinstance(content, str) else _flat(content),
            _END,
        )
    return "".join(parts)


def chat_text(messages: Iterable[tuple[str, object]], tools: object = None) -> str:
    """The same of a chat's roles and contents, which are text, None, or lists of parts."""
    asked = [AskedMessage(role, content) for role, content in messages]
    return asked_text(AskedChat(asked, tools=tools))


def _flat(content: object) -> str:
    if content is None:
        return ""
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        return msgspec.json.encode(content).decode()
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        texts.append(text if isinstance(text, str) else msgspec.json.encode(part).decode())
    return "".join(texts)
