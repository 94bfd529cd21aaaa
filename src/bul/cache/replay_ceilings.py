"""What no policy can beat: the clairvoyant and the cache without an end, for the replay only.

They refuse to be policies of the engine: one needs the future, the other endless memory. Neither
knows holds, removal or a change of capacity.

Belady: L. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966: drop
the block whose next use is farthest, the new block itself if it is that (bypass). A parent is used
whenever its child is, so its next use is never farther, and with ties broken tail first the
farthest block is always a leaf: prefix closure costs the clairvoyant nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence

from bul.cache.eviction.contract import Access
from bul.cache.replay_trace import Trace

__all__ = ["Belady", "Infinite"]


class Belady:
    """Farthest next use goes first. Made for one trace, whose requests must come in order."""

    name = "belady"

    def __init__(self, capacity: int, trace: Trace) -> None:
        self.capacity = capacity
        self._next_uses = _next_uses(trace)
        self._position = 0
        self._resident: dict[Hashable, int] = {}
        self._farthest: list[tuple[int, int, Hashable]] = []

    def match(self, path: Sequence[Hashable]) -> int:
        """Length of the longest resident prefix of `path`. Does not modify the policy."""
        return _match(self._resident, path)

    def access(self, access: Access) -> list[Hashable]:
        """Put the whole path in, then drop the farthest until it fits; returns what left."""
        resident, farthest = self._resident, self._farthest
        uses = self._next_uses[self._position]
        self._position += 1
        for depth, (key, use) in enumerate(zip(access.path, uses, strict=True)):
            resident[key] = use
            heapq.heappush(farthest, (-use, -depth, key))
        gone: list[Hashable] = []
        while len(resident) > self.capacity:
            use, _, key = heapq.heappop(farthest)
            if resident.get(key) == -use:
                del resident[key]
                gone.append(key)
        return gone

    def finish(self, path: Sequence[Hashable], output_tokens: int) -> None:
        """Nothing to learn: it knew."""


class Infinite:
    """Never evicts: the share of tokens that were ever seen before."""

    name = "infinite"

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._resident: dict[Hashable, None] = {}

    def match(self, path: Sequence[Hashable]) -> int:
        """Length of the longest prefix of `path` seen before. Does not modify the policy."""
        return _match(self._resident, path)

    def access(self, access: Access) -> list[Hashable]:
        """Remember the path; nothing ever leaves."""
        self._resident.update(dict.fromkeys(access.path))
        return []

    def finish(self, path: Sequence[Hashable], output_tokens: int) -> None:
        """Nothing to learn: it keeps all."""


def _match(resident: dict[Hashable, int] | dict[Hashable, None], path: Sequence[Hashable]) -> int:
    for length, key in enumerate(path):
        if key not in resident:
            return length
    return len(path)


def _next_uses(trace: Trace) -> list[list[int]]:
    """Per request and block of its path, the number of the next request with that block."""
    never = len(trace.requests)
    following: dict[Hashable, int] = {}
    uses: list[list[int]] = []
    for position in range(never - 1, -1, -1):
        path = trace.requests[position].path
        uses.append([following.get(key, never) for key in path])
        following.update(dict.fromkeys(path, position))
    uses.reverse()
    return uses
