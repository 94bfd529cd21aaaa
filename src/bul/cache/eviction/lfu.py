"""Leaf-only LFU: the leaf used least often since it came in goes next, the oldest use first.

It refuses to remember counts of what left (in-cache LFU; perfect LFU never forgets).
Adapted: only leaves compete. A parent's count is never below its child's, so chains go tail first.
Expect little of it on chats: the heads of dead sessions look frequent for ever.
"""

from __future__ import annotations

from bul.cache.eviction.tree import LeafHeap, Node, TreePolicy

__all__ = ["Lfu"]


class Lfu(TreePolicy):
    """Least frequently used, ties by recency."""

    name = "lfu"

    def __init__(self, capacity: int, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self._leaves = LeafHeap()
        self._heaps = (self._leaves,)

    def _touch(self, node: Node) -> None:
        node.count += 1
        node.stamp = self._tick

    def _start(self, node: Node) -> None:
        node.count = 1
        node.stamp = self._tick

    def _enqueue(self, node: Node) -> None:
        self._leaves.push(node, node.count, node.stamp)

    def _victim(self) -> Node | None:
        return self._leaves.first()
