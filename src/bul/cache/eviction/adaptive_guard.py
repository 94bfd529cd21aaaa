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

    def holds(self, last: RequestMemory, depth: int) -> bool:
        """Would LRU hold the block at `depth` whose last user is `last`?"""
        if not self._requests:
            return False
        oldest = self._requests[0]
        if last.number == oldest.number:
            return depth < oldest.shadow_depth
        return last.number > oldest.number

    def used(self, last: RequestMemory | None, depth: int) -> None:
        """A block passes from its last user, if that is known, to the request that comes next."""
        if last is not None and self.holds(last, depth):
            last.shadow_blocks -= 1
            self._blocks -= 1

    def admit(self, request: RequestMemory) -> None:
        """All blocks of `request` are its own now; LRU lets the oldest go."""
        request.shadow_blocks = request.length
        self._blocks += request.length
        self._requests.append(request)
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
