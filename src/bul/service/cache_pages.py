"""What `/cache/stats`, `/cache/explain` and `/cache/delete` answer: figures, one prompt's chain.

Refuses to look at anybody else's blocks: keys are made here, with the caller's own salt, so that
another tenant's blocks can neither be asked for nor deleted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from bul.blocks.chain import block_keys, chain_root
from bul.cache.explain import OtherIdentity, explain
from bul.errors import InvalidRequest
from bul.inference.contract import ModelCore
from bul.service.openai import Job, parse_chat, parse_completion

__all__ = ["CacheView", "Explainer", "explain_job", "stats_body"]

Parts = Mapping[str, Mapping[str, float]]


class CacheView(Protocol):
    """What the service looks at; the cache engine is one."""

    def stats(self) -> Parts: ...

    def stats_by_class(self) -> Parts: ...

    def presence(self, keys: Sequence[bytes]) -> Mapping[str, Sequence[bool]]: ...

    def delete_blocks(self, keys: Sequence[bytes]) -> Mapping[str, int | None]: ...


class _Kind(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Explainer:
    """identities: the fields of every identity that the slower tiers hold blocks of."""

    cache: CacheView
    core: ModelCore
    identities: Callable[[], Sequence[Mapping[str, object]]]

    def explain(self, tokens: Sequence[int], salt: bytes, *, identities: bool) -> bytes:
        """JSON of what is cached of `tokens` for the tenant with `salt`. As slow as a disk.

        identities: also name the fields in which other identities differ.
        """
        identity, block_tokens = self.core.identity, self.core.block_tokens
        keys = self._keys(tokens, salt)
        ours = identity.digest().hex()
        stored = self.identities() if identities else ()
        found = explain(
            self.cache.presence(keys),
            tokens=len(tokens),
            block_tokens=block_tokens,
            identity=dataclasses.asdict(identity),
            others=[OtherIdentity(fields=one) for one in stored if one.get("digest") != ours],
        )
        shown = {"tokens": len(tokens), "block_tokens": block_tokens, "identity": ours}
        return msgspec.json.encode(shown | dataclasses.asdict(found))

    def delete(self, tokens: Sequence[int], salt: bytes) -> bytes:
        """JSON of how many blocks there were to delete, and how many are left in each tier."""
        keys = self._keys(tokens, salt)
        left = self.cache.delete_blocks(keys)
        return msgspec.json.encode({"blocks": len(keys), "left": left})

    def _keys(self, tokens: Sequence[int], salt: bytes) -> list[bytes]:
        root = chain_root(self.core.identity.digest(), salt)
        return block_keys(root, tokens, self.core.block_tokens)


def explain_job(body: bytes, *, context_tokens: int) -> Job:
    """The one prompt of a chat or text completion's body. Raises InvalidRequest."""
    try:
        chat = bool(bytes(msgspec.json.decode(body, type=_Kind).messages))
    except msgspec.MsgspecError:
        chat = False  # parse_completion says what is wrong
    job = (parse_chat if chat else parse_completion)(body, context_tokens=context_tokens)
    if len(job.prompts) > 1:
        raise InvalidRequest("one prompt at a time", param="prompt", code="invalid_value")
    return job


def stats_body(cache: CacheView | None) -> bytes:
    """JSON: "parts" by name (engine, values, then the tiers, fastest first), and "classes"."""
    if cache is None:
        return msgspec.json.encode({"parts": {}, "classes": {}})
    parts, classes = _numbers(cache.stats()), _numbers(cache.stats_by_class())
    return msgspec.json.encode({"parts": parts, "classes": classes})


def _numbers(parts: Parts) -> Parts:
    """Breakers say True and False; a reader of figures wants numbers."""
    return {part: {name: +value for name, value in now.items()} for part, now in parts.items()}
