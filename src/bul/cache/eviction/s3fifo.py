"""Leaf-only S3-FIFO: a small queue on probation, a main queue with second chances, and ghosts.

J. Yang, Y. Zhang, Z. Qiu, Y. Yue, R. Vinayak, "FIFO queues are all you need for cache eviction",
SOSP 2023, algorithm 1. New blocks enter the small queue S (a tenth of the capacity); used twice or
more by the time they reach its end they move to the main queue M, else only their key stays in the
ghost queue, and a miss on a ghost goes to M at once. M gives a block one more round per use, at
most three. As in the authors' libCacheSim, M is drained while it is above its share, else S, and
until the first eviction new blocks that S has no room for go to M.
Worked number: capacity 100: S has 10, M 90, and 90 ghosts are kept; a block used four times while
in M outlives three rounds.

It refuses to reorder on a hit: a hit only counts.
Adapted: a queue is drained from its oldest *leaf*; an inner block keeps its place and is judged
when it has become a leaf. If the chosen queue has no leaf that may go, the other gives one.
"""

from __future__ import annotations

import collections
from collections.abc import Hashable

from bul.cache.eviction.tree import LeafHeap, Node, TreePolicy

__all__ = ["S3Fifo"]

_SMALL, _MAIN = 0, 1
SMALL_SHARE = 0.1
COUNT_MAX = 3
PROMOTE_COUNT = 2


class S3Fifo(TreePolicy):
    """Three static FIFO queues; `node.queue` is the one that a block is in."""

    name = "s3fifo"

    def __init__(self, capacity: int, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self._queues = (LeafHeap(_SMALL), LeafHeap(_MAIN))
        self._heaps = self._queues
        self._sizes = [0, 0]
        self._ghosts: collections.OrderedDict[Hashable, None] = collections.OrderedDict()
        self._entered = 0
        self._to_main = False
        self._filled = False

    @property
    def _small_max(self) -> int:
        return int(SMALL_SHARE * self.capacity)

    def _touch(self, node: Node) -> None:
        if node.count < COUNT_MAX:
            node.count += 1

    def _miss(self, key: Hashable) -> None:
        self._to_main = key in self._ghosts
        if self._to_main:
            del self._ghosts[key]
        elif not self._filled:
            self._to_main = self._sizes[_SMALL] >= self._small_max

    def _start(self, node: Node) -> None:
        self._enter(node, _MAIN if self._to_main else _SMALL)

    def _enter(self, node: Node, queue: int) -> None:
        self._entered += 1
        node.stamp = self._entered
        node.queue = queue
        self._sizes[queue] += 1

    def _enqueue(self, node: Node) -> None:
        self._queues[node.queue].push(node, node.stamp)

    def _victim(self) -> Node | None:
        while True:
            main_max = self.capacity - self._small_max
            drain_main = self._sizes[_MAIN] > main_max or not self._sizes[_SMALL]
            queue = _MAIN if drain_main else _SMALL
            node = self._queues[queue].first() or self._queues[1 - queue].first()
            if node is None or not self._second_chance(node):
                return node

    def _second_chance(self, node: Node) -> bool:
        """Move a used leaf to the end of the main queue; False if it has to go."""
        queue = node.queue
        if queue == _SMALL and node.count < PROMOTE_COUNT:
            return False
        if queue == _MAIN and node.count == 0:
            return False
        node.count = 0 if queue == _SMALL else node.count - 1
        self._sizes[queue] -= 1
        self._enter(node, _MAIN)
        self._offer(node)
        return True

    def _forget(self, node: Node, *, evicted: bool) -> None:
        self._filled = True
        self._sizes[node.queue] -= 1
        if evicted and node.queue == _SMALL:
            self._ghosts[node.key] = None
            while len(self._ghosts) > self.capacity - self._small_max:
                self._ghosts.popitem(last=False)
