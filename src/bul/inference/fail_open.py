"""A `PrefixCache` seen by the runner: whatever it raises becomes a miss and a count.

Refuses to let a cache failure become a request failure (DESIGN, promise 2); the contract already
forbids a cache to raise for a tier's fault, and this holds when that promise is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from bul.blocks.prefix import Buffer, PrefixCache, PrefixMatch, RequestFacts

__all__ = ["FailOpenCache"]

_T = TypeVar("_T")


class FailOpenCache:
    """Every call returns; `errors` counts those that raised inside."""

    def __init__(self, cache: PrefixCache, block_bytes: int) -> None:
        self._cache = cache
        self._block_bytes = block_bytes
        self.errors = 0
        """Calls that raised, and blocks of a wrong size."""

    def match(
        self, keys: Sequence[bytes], facts: RequestFacts, wake: Callable[[], None]
    ) -> PrefixMatch | None:
        """Start a match that will call `wake` once it is settled; `None` when that failed."""
        match = self._guard(lambda: self._cache.match_prefix(keys, facts), None)
        if match is None:
            return None
        before = self.errors
        self._guard(lambda: match.when_settled(wake), None)
        if self.errors == before:
            return match
        self.release(match)
        return None

    def is_settled(self, match: PrefixMatch) -> bool:
        """Whether `match.blocks` is final; a broken match is, with no blocks."""
        return self._guard(lambda: match.settled, default=True)

    def blocks(self, match: PrefixMatch) -> list[Buffer]:
        """The matched blocks up to the first of a wrong size."""
        nothing: list[Buffer] = []
        blocks = self._guard(lambda: list(match.blocks), nothing)
        for index, block in enumerate(blocks):
            if not self._is_whole(block):
                return blocks[:index]
        return blocks

    def release(self, match: PrefixMatch) -> None:
        """Drop holds and claims."""
        self._guard(match.release, None)

    def set_blocks(
        self, path: Sequence[bytes], first: int, blocks: Sequence[Buffer], facts: RequestFacts
    ) -> None:
        """Keep the blocks; all of them are dropped when one has a wrong size."""
        if all(map(self._is_whole, blocks)):
            self._guard(lambda: self._cache.set_blocks(path, first, blocks, facts), None)

    def finish(self, path: Sequence[bytes], output_tokens: int, facts: RequestFacts) -> None:
        """Pass the hint on."""
        self._guard(lambda: self._cache.finish(path, output_tokens, facts), None)

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """Pass the measurement on."""
        self._guard(lambda: self._cache.observe_prefill(tokens, seconds), None)

    def _is_whole(self, block: Buffer) -> bool:
        size = block.nbytes if isinstance(block, memoryview) else len(block)
        self.errors += size != self._block_bytes
        return size == self._block_bytes

    def _guard(self, call: Callable[[], _T], default: _T) -> _T:
        try:
            return call()
        except Exception:  # noqa: BLE001 - any failure of the cache is a miss
            self.errors += 1
            return default
