"""Prefix caches for tests: a plain one with claims, and three that misbehave on purpose.

`DictPrefixCache` is the reference implementation of the contract in `blocks/prefix.py`: no tiers,
no bound, no eviction, but claims and settling as the contract says. Refuses to be fast.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from bul.blocks.prefix import Buffer, PrefixMatch, RequestFacts

__all__ = ["DictPrefixCache", "GatedPrefixCache", "RaisingPrefixCache", "WrongPrefixCache"]


class _DictMatch:
    """A match on a `DictPrefixCache`; all state is guarded by the cache's lock."""

    def __init__(self, cache: DictPrefixCache, keys: Sequence[bytes]) -> None:
        self._cache = cache
        self.keys = tuple(keys)
        self.blocks: Sequence[Buffer] = ()
        self.settled = False
        self.released = False
        self.callbacks: list[Callable[[], None]] = []

    def when_settled(self, callback: Callable[[], None]) -> None:
        with self._cache.lock:
            if not self.settled:
                self.callbacks.append(callback)
                return
        callback()

    def release(self) -> None:
        self._cache.release(self)


class DictPrefixCache:
    """A `PrefixCache` in one dict. `computed` counts how often each key was set."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stored: dict[bytes, Buffer] = {}
        self.claims: dict[bytes, _DictMatch] = {}
        self.matches: set[_DictMatch] = set()
        """Matches that have not been released."""
        self.computed: Counter[bytes] = Counter()
        self.finished: list[tuple[int, int]] = []
        """(full blocks of the prompt, output tokens) of each ended request."""
        self.prefills: list[tuple[int, float]] = []
        self._waiting: list[_DictMatch] = []

    def match_prefix(
        self, keys: Sequence[bytes], facts: RequestFacts = RequestFacts()
    ) -> PrefixMatch:
        match = _DictMatch(self, keys)
        with self.lock:
            self.matches.add(match)
            self._waiting.append(match)
        self.settle_waiting()
        return match

    def set_blocks(
        self,
        path: Sequence[bytes],
        first: int,
        blocks: Sequence[Buffer],
        facts: RequestFacts = RequestFacts(),
    ) -> None:
        assert first + len(blocks) <= len(path), (first, len(blocks), len(path))
        with self.lock:
            for key, block in zip(path[first:], blocks, strict=False):
                self.stored[key] = block
                self.computed[key] += 1
                self.claims.pop(key, None)
        self.settle_waiting()

    def finish(
        self, path: Sequence[bytes], output_tokens: int, facts: RequestFacts = RequestFacts()
    ) -> None:
        self.finished.append((len(path), output_tokens))

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        self.prefills.append((tokens, seconds))

    def release(self, match: _DictMatch) -> None:
        """Drop the match's claims; those that waited for them settle."""
        with self.lock:
            match.released = True
            self.matches.discard(match)
            for key in match.keys:
                if self.claims.get(key) is match:
                    del self.claims[key]
        self.settle_waiting()

    def may_settle(self, match: _DictMatch) -> bool:
        """Whether loads are through; a subclass may say no for a while."""
        return True

    def settle_waiting(self) -> None:
        """Settle whoever can be, in the order of arrival; call back outside of the lock."""
        callbacks: list[Callable[[], None]] = []
        with self.lock:
            still_waiting = []
            for match in self._waiting:
                if match.released:
                    continue
                if self.may_settle(match) and self._settle(match):
                    callbacks += match.callbacks
                    match.callbacks = []
                else:
                    still_waiting.append(match)
            self._waiting = still_waiting
        for callback in callbacks:
            callback()

    def _settle(self, match: _DictMatch) -> bool:
        """Claim what is missing, unless another match has claimed the next of it."""
        cached = 0
        while cached < len(match.keys) and match.keys[cached] in self.stored:
            cached += 1
        missing = match.keys[cached:]
        if missing and missing[0] in self.claims:
            return False
        for key in missing:
            self.claims.setdefault(key, match)
        match.blocks = tuple(self.stored[key] for key in match.keys[:cached])
        match.settled = True
        return True


class GatedPrefixCache(DictPrefixCache):
    """Loads that take until `open_gate`: no match settles before."""

    def __init__(self) -> None:
        super().__init__()
        self._is_open = False

    def may_settle(self, match: _DictMatch) -> bool:
        return self._is_open

    def open_gate(self) -> None:
        """All loads have arrived."""
        self._is_open = True
        self.settle_waiting()


class WrongPrefixCache(DictPrefixCache):
    """The control: hands out blocks of the right size with one flipped bit, or of a wrong size."""

    def __init__(self, *, resize: int = 0) -> None:
        super().__init__()
        self._resize = resize

    def _settle(self, match: _DictMatch) -> bool:
        settled = super()._settle(match)
        match.blocks = tuple(map(self._spoil, match.blocks))
        return settled

    def _spoil(self, block: Buffer) -> bytes:
        spoiled = bytearray(block)
        if self._resize:
            return bytes(spoiled[: len(spoiled) + self._resize])
        spoiled[len(spoiled) // 2] ^= 1
        return bytes(spoiled)


class _RaisingMatch:
    """A match whose named members raise; the others do nothing."""

    def __init__(self, raising: frozenset[str]) -> None:
        self._raising = raising

    def _call(self, name: str) -> None:
        if name in self._raising:
            raise RuntimeError(f"{name} is broken")

    @property
    def blocks(self) -> Sequence[Buffer]:
        self._call("blocks")
        return ()

    @property
    def settled(self) -> bool:
        self._call("settled")
        return True

    def when_settled(self, callback: Callable[[], None]) -> None:
        self._call("when_settled")
        callback()

    def release(self) -> None:
        self._call("release")


class RaisingPrefixCache:
    """Raises in the members named, of the cache and of its matches."""

    def __init__(self, *raising: str) -> None:
        self._raising = frozenset(raising)
        self.calls: Counter[str] = Counter()

    def match_prefix(
        self, keys: Sequence[bytes], facts: RequestFacts = RequestFacts()
    ) -> PrefixMatch:
        self._call("match_prefix")
        return _RaisingMatch(self._raising)

    def set_blocks(
        self,
        path: Sequence[bytes],
        first: int,
        blocks: Sequence[Buffer],
        facts: RequestFacts = RequestFacts(),
    ) -> None:
        self._call("set_blocks")

    def finish(
        self, path: Sequence[bytes], output_tokens: int, facts: RequestFacts = RequestFacts()
    ) -> None:
        self._call("finish")

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        self._call("observe_prefill")

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if name in self._raising:
            raise RuntimeError(f"{name} is broken")
