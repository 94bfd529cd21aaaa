"""The contract between whoever computes KV and whoever keeps it.

It lives here because `inference` and `cache` are siblings and never import each other:
the runner asks a `PrefixCache`, the cache engine is one, and the cli ties them together.

The life of a match, from the computing side (all calls are synchronous and never block on I/O):

    match = cache.match_prefix(keys)          # [0, cached) may still be loading
    match.when_settled(wake)                  # exactly once, any thread, perhaps at once
    ... once match.settled:
    import match.blocks                       # [0, cached) is valid
    compute [cached, end)                     # this match owns the claims on the missing keys
    cache.set_blocks(keys[cached:], blocks)   # the claims end; others that waited settle
    match.release()                           # always, also when the request died

A *claim* is single flight: of several requests that miss the same block, one computes it, the
others settle when it is set, or when its claimant released without setting it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from bul.tracing import Span

__all__ = ["Buffer", "NoCache", "PrefixCache", "PrefixMatch", "RequestFacts"]

Buffer = bytes | bytearray | memoryview
"""A block's payload: C-contiguous bytes of shape [layers, K/V, tokens, row]."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RequestFacts:
    """What the service knows of a request that may tell the eviction policy something.

    tenant: the key's name, "" for none. prompt_tokens, output_tokens_max: as asked.
    priority: "interactive", "batch" or "prefetch". session: the client's own id, "" if unknown.
    span: under which what is done for it is told; None unless its trace is sampled.
    """

    tenant: str = ""
    prompt_tokens: int = 0
    output_tokens_max: int = 0
    priority: str = "interactive"
    session: str = ""
    span: Span | None = dataclasses.field(default=None, compare=False, repr=False)


class PrefixMatch(Protocol):
    """The longest stored prefix of one request, held until `release`."""

    @property
    def blocks(self) -> Sequence[Buffer]:
        """Payloads of blocks [0, cached), root first; final once `settled`."""
        ...

    @property
    def settled(self) -> bool:
        """No load is under way and no other request computes the next missing block."""
        ...

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when settled, from any thread; at once if it already is."""
        ...

    def release(self) -> None:
        """Drop holds and unfulfilled claims. Idempotent; any thread."""
        ...


class PrefixCache(Protocol):
    """Keeps blocks by key. Never raises for a tier's fault: a failure is a shorter match."""

    def match_prefix(self, keys: Sequence[bytes], facts: RequestFacts = ...) -> PrefixMatch:
        """Start matching `keys` (a chain, root first). Claims the missing ones."""
        ...

    def set_blocks(
        self, path: Sequence[bytes], first: int, blocks: Sequence[Buffer], facts: RequestFacts = ...
    ) -> None:
        """Keep `blocks` as `path[first : first + len(blocks)]`; `path` is the chain from the root.

        The cache keeps the buffers themselves: the caller must not change them afterwards.
        """
        ...

    def finish(self, path: Sequence[bytes], output_tokens: int, facts: RequestFacts = ...) -> None:
        """Tell the policy how the request ended. A hint; may do nothing."""
        ...

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """A measurement for the break-even gate: `tokens` were computed in `seconds`."""
        ...


class _EmptyMatch:
    blocks: Sequence[Buffer] = ()
    settled = True

    def when_settled(self, callback: Callable[[], None]) -> None:
        callback()

    def release(self) -> None:
        pass


class NoCache:
    """The cache that keeps nothing: the control that every "with cache" is compared with."""

    def match_prefix(
        self, keys: Sequence[bytes], facts: RequestFacts = RequestFacts()
    ) -> PrefixMatch:
        return _EmptyMatch()

    def set_blocks(
        self,
        path: Sequence[bytes],
        first: int,
        blocks: Sequence[Buffer],
        facts: RequestFacts = RequestFacts(),
    ) -> None:
        pass

    def finish(
        self, path: Sequence[bytes], output_tokens: int, facts: RequestFacts = RequestFacts()
    ) -> None:
        pass

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        pass
