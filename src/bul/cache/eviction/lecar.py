"""Leaf-only LeCaR: LRU and LFU both propose, a coin weighted by their past mistakes decides.

G. Vietri et al., "Driving Cache Replacement with ML-based LeCaR", HotStorage 2018. A key that one
expert evicted stays in that expert's history; a miss on it is regret r = d^t, t being the accesses
since, and raises the *other* expert's weight by e^(lambda r). lambda = 0.45 and
d = 0.005^(1/capacity). As in the authors' code, a history is half as long as the cache, a block
that both experts chose enters none, one that comes back from a history keeps its count, and no
weight falls under 0.01.
Worked number: capacity 100, LRU's victim missed 50 accesses later: r = 0.005^0.5 = 0.07, LFU's
weight grows by e^0.032 = 3 % before both are normalised.

It refuses to use the machine's randomness: the coin is seeded.
Adapted: both experts propose their first *leaf*; time is counted in accessed blocks.
"""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Hashable

from bul.cache.eviction.tree import LeafHeap, Node, TreePolicy

__all__ = ["Lecar"]

_LRU, _LFU, _BOTH = 0, 1, 2
LEARNING_RATE = 0.45
DISCOUNT_BASE = 0.005
WEIGHT_MIN = 0.01


class Lecar(TreePolicy):
    """Learning cache replacement with two experts."""

    name = "lecar"

    def __init__(self, capacity: int, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self._experts = (LeafHeap(), LeafHeap())
        self._heaps = self._experts
        self._weights = [0.5, 0.5]
        self._histories: tuple[collections.OrderedDict[Hashable, tuple[int, int]], ...] = (
            collections.OrderedDict(),
            collections.OrderedDict(),
        )
        self._random = random.Random(seed)
        self._accesses = 0
        self._chosen = _LRU
        self._restored_count = 0

    def _touch(self, node: Node) -> None:
        self._accesses += 1
        node.stamp = self._accesses
        node.count += 1

    def _miss(self, key: Hashable) -> None:
        self._accesses += 1
        self._restored_count = 0
        for expert in (_LRU, _LFU):
            remembered = self._histories[expert].pop(key, None)
            if remembered is not None:
                left_at, self._restored_count = remembered
                self._regret(expert, self._accesses - left_at)

    def _regret(self, expert: int, elapsed: int) -> None:
        regret = DISCOUNT_BASE ** (elapsed / self.capacity)
        weights = self._weights
        weights[1 - expert] *= math.exp(LEARNING_RATE * regret)
        total = weights[_LRU] + weights[_LFU]
        share = min(max(weights[_LRU] / total, WEIGHT_MIN), 1.0 - WEIGHT_MIN)
        weights[_LRU], weights[_LFU] = share, 1.0 - share

    def _start(self, node: Node) -> None:
        node.stamp = self._accesses
        node.count = self._restored_count + 1

    def _enqueue(self, node: Node) -> None:
        # Stamps rise along a path, and the end of a path is its only leaf: recency is the same.
        self._experts[_LRU].push(node, node.stamp)
        self._experts[_LFU].push(node, node.count, node.stamp)

    def _victim(self) -> Node | None:
        proposals = self._experts[_LRU].first(), self._experts[_LFU].first()
        self._chosen = _LRU if self._random.random() < self._weights[_LRU] else _LFU
        victim = proposals[self._chosen]
        if proposals[_LRU] is proposals[_LFU]:
            self._chosen = _BOTH
        return victim

    def _forget(self, node: Node, *, evicted: bool) -> None:
        if evicted and self._chosen != _BOTH:
            history = self._histories[self._chosen]
            history[node.key] = (self._accesses, node.count)
            if len(history) > self.capacity // 2:
                history.popitem(last=False)
