"""Leaf-only LRU: the leaf whose last request lies furthest back goes next.

It refuses nothing: every block is admitted. Because every request touches a whole path, a parent is
never older than its child, so leaf-only LRU equals plain LRU with each path touched tail first.
This is the yardstick: ../shared/data/README.md states its hit ratios from an independent replay.
"""

from __future__ import annotations

from bul.cache.eviction.tree import LeafHeap, Node, TreePolicy

__all__ = ["Lru"]


class Lru(TreePolicy):
    """Least recently used leaf."""

    name = "lru"

    def __init__(self, capacity: int, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self._leaves = LeafHeap()
        self._heaps = (self._leaves,)

    def _touch(self, node: Node) -> None:
        node.stamp = self._tick

    def _start(self, node: Node) -> None:
        node.stamp = self._tick

    def _enqueue(self, node: Node) -> None:
        self._leaves.push(node, node.stamp)

    def _victim(self) -> Node | None:
        return self._leaves.first()
