"""What the adaptive policy remembers of blocks that left, oldest first out.

It refuses `collections.OrderedDict`, which the garbage collector walks: entries name their
neighbours by key instead, and among a million of them it has nothing to do.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from bul.cache.eviction.adaptive_request import RequestMemory

__all__ = ["Ghost", "Ghosts"]


class Ghost(msgspec.Struct, gc=False, eq=False):
    """Of an absent block: its last request, its touches, and who left before and after it."""

    last: RequestMemory
    count: int
    older: Hashable | None
    newer: Hashable | None = None


class Ghosts:
    """Ghosts in the order in which the blocks left; read `by_key`, write by the methods."""

    def __init__(self) -> None:
        # A dict of its own, not a base class: only an exact dict is left alone by the collector.
        self.by_key: dict[Hashable, Ghost] = {}
        self._oldest: Hashable | None = None
        self._newest: Hashable | None = None

    def add(self, key: Hashable, last: RequestMemory, count: int) -> None:
        """`key`, of which nothing was remembered, has left."""
        newest = self._newest
        self.by_key[key] = Ghost(last, count, newest)
        if newest is None:
            self._oldest = key
        else:
            self.by_key[newest].newer = key
        self._newest = key

    def take(self, key: Hashable) -> int:
        """`key` is back: forget its ghost; returns its touches. KeyError if there is none."""
        ghost = self.by_key.pop(key)
        if ghost.older is None:
            self._oldest = ghost.newer
        else:
            self.by_key[ghost.older].newer = ghost.newer
        if ghost.newer is None:
            self._newest = ghost.older
        else:
            self.by_key[ghost.newer].older = ghost.older
        return ghost.count

    def trim(self, limit: int) -> None:
        """Forget the oldest above `limit`."""
        while len(self.by_key) > limit:
            assert self._oldest is not None
            self.take(self._oldest)
