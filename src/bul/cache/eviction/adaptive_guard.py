"""The guard against regress: what would LRU have hit, and is it winning?

It refuses to hold keys: LRU of whole paths is determined by each block's last request, which the
policy knows anyway. The shadow is the newest requests whose blocks fill the capacity; of the oldest
of them only the head fits, down to `shadow_depth`. So the shadow costs a few numbers per request.

The policy's lead over the shadow, in blocks hit, fades with a half-life of HALF_LIFE_REQUESTS. Once
it has lost more than LOSS_SHARE of what as many requests ask for, it must evict as LRU; when the
loss has faded to half of that, it may try again. So for long it can lose about LOSS_SHARE.
Worked number: 1,024 requests of half-life weigh as 1,478; at 20 blocks each and LOSS_SHARE 0.005
the limit is 148 blocks, lost within a few minutes or in half an hour.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from bul.cache.eviction.adaptive_request import RequestMemory

__all__ = ["Guard", "LruShadow"]

HALF_LIFE_REQUESTS = 1024
LOSS_SHARE = 0.005
FADE = 0.5 ** (1.0 / HALF_LIFE_REQUESTS)


class LruShadow:
    """Which blocks leaf-only LRU would hold, by number and depth."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._requests: collections.deque[RequestMemory] = collections.deque()
        self._blocks = 0

    def use(self, runs: Sequence[tuple[RequestMemory, int, int]]) -> int:
        """Blocks [begin, end) with one last user each pass to the request that comes next.

        `runs` are its known prefix, in order; returns how many leading blocks LRU would hold.
        """
        if not self._requests:
            return 0
        oldest = self._requests[0]
        hits, unbroken = 0, True
        for last, begin, end in runs:
            if last.number > oldest.number:
                held = end - begin
            elif last is oldest:
                held = max(0, min(end, oldest.shadow_depth) - begin)
            else:
                held = 0
            last.shadow_blocks -= held
            self._blocks -= held
            if unbroken:
                hits += held
                unbroken = held == end - begin
        return hits

    def admit(self, request: RequestMemory, blocks: int) -> None:
        """`blocks` more blocks are `request`'s own now; LRU lets the oldest go."""
        if not self._requests or request.number > self._requests[-1].number:
            self._requests.append(request)
        elif request.shadow_depth < request.length - blocks:
            return  # a later part of one that LRU would have cut already
        request.shadow_blocks += blocks
        request.shadow_depth = request.length
        self._blocks += blocks
        self.resize(self._capacity)

    def resize(self, capacity: int) -> None:
        """Let go what is above `capacity`, tails of the oldest request first."""
        self._capacity = capacity
        while self._blocks > capacity:
            oldest = self._requests[0]
            excess = self._blocks - capacity
            if oldest.shadow_blocks > excess:
                oldest.shadow_blocks -= excess
                oldest.shadow_depth -= excess
                self._blocks -= excess
            else:
                self._blocks -= oldest.shadow_blocks
                self._requests.popleft()


class Guard:
    """Compares hits with the shadow's and says whether LRU must decide."""

    def __init__(self) -> None:
        self.follow_lru = False
        self._lead = 0.0
        self._asked = 0.0
        self._weight = 0.0

    def judge(self, hits: int, shadow_hits: int, asked: int) -> None:
        """One request asked for `asked` blocks."""
        self._lead = self._lead * FADE + (hits - shadow_hits)
        self._asked = self._asked * FADE + asked
        self._weight = self._weight * FADE + 1.0
        asked_per_request = self._asked / self._weight
        limit = -LOSS_SHARE * asked_per_request / (1.0 - FADE)
        self.follow_lru = self._lead < (limit / 2 if self.follow_lru else limit)
