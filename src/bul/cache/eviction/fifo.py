"""Leaf-only FIFO: the leaf that came in first goes next, used since or not.

It refuses to learn anything from a hit, which makes it the floor that a policy has to beat.
Adapted: blocks of a path come in root first, so the root is oldest; it goes once it is a leaf.
"""

from __future__ import annotations

from bul.cache.eviction.tree import LeafHeap, Node, TreePolicy

__all__ = ["Fifo"]


class Fifo(TreePolicy):
    """First in, first out."""

    name = "fifo"

    def __init__(self, capacity: int, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self._leaves = LeafHeap()
        self._heaps = (self._leaves,)
        self._inserted = 0

    def _start(self, node: Node) -> None:
        self._inserted += 1
        node.stamp = self._inserted

    def _enqueue(self, node: Node) -> None:
        self._leaves.push(node, node.stamp)

    def _victim(self) -> Node | None:
        return self._leaves.first()
