"""Leaf-only ARC: two recency lists, seen once and seen again, whose border follows the misses.

N. Megiddo and D. Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003, figure 4.
T1 holds blocks seen once since they came in, T2 those seen again; B1 and B2 remember the keys that
left either. A miss on a key in B1 says that T1 was too small and moves the target p up by
max(1, |B2| / |B1|); B2 moves it down. REPLACE evicts from T1 while it is above p, else from T2.
Worked number: c = 100, |B1| = 10, |B2| = 30: a miss found in B1 raises p by 3, one found in B2
lowers it by 1.

It refuses to use anything but the order of accesses.
Adapted: the least recent *leaf* of a list goes; if the chosen list has no leaf that may go (its
blocks all have children in the other), the other list gives one. A removed block leaves no ghost.
"""

from __future__ import annotations

import collections
from collections.abc import Hashable

from bul.cache.eviction.tree import LeafHeap, Node, TreePolicy

__all__ = ["Arc"]

_ONCE, _AGAIN = 0, 1
_FRESH = -1


class Arc(TreePolicy):
    """Adaptive replacement cache; `node.queue` is the list that a block is in."""

    name = "arc"

    def __init__(self, capacity: int, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self._lists = (LeafHeap(_ONCE), LeafHeap(_AGAIN))
        self._heaps = self._lists
        self._sizes = [0, 0]
        self._ghosts: tuple[collections.OrderedDict[Hashable, None], ...] = (
            collections.OrderedDict(),
            collections.OrderedDict(),
        )
        self._once_target = 0.0  # p of the paper
        self._came_from = _FRESH
        self._leave_ghost = True

    def _touch(self, node: Node) -> None:
        node.stamp = self._tick
        if node.queue == _ONCE:
            node.queue = _AGAIN
            self._sizes[_ONCE] -= 1
            self._sizes[_AGAIN] += 1

    def _miss(self, key: Hashable) -> None:
        once, again = self._ghosts
        self._leave_ghost = True
        if key in once:
            step = max(1.0, len(again) / len(once))
            self._once_target = min(self._once_target + step, float(self.capacity))
            self._came_from = _ONCE
            del once[key]
        elif key in again:
            step = max(1.0, len(once) / len(again))
            self._once_target = max(self._once_target - step, 0.0)
            self._came_from = _AGAIN
            del again[key]
        else:
            self._came_from = _FRESH
            self._trim()

    def _trim(self) -> None:
        """Case IV of the paper: keep |T1| + |B1| <= c and all four lists <= 2c."""
        once, again = self._ghosts
        capacity = self.capacity
        if self._sizes[_ONCE] + len(once) >= capacity:
            if once:
                once.popitem(last=False)
            else:
                self._leave_ghost = False
        elif len(self._nodes) + len(once) + len(again) >= 2 * capacity and again:
            again.popitem(last=False)

    def _start(self, node: Node) -> None:
        node.stamp = self._tick
        node.queue = _ONCE if self._came_from == _FRESH else _AGAIN
        self._sizes[node.queue] += 1

    def _enqueue(self, node: Node) -> None:
        self._lists[node.queue].push(node, node.stamp)

    def _victim(self) -> Node | None:
        size, target = self._sizes[_ONCE], self._once_target
        from_once = size >= 1 and (
            not self._leave_ghost or size > target or (self._came_from == _AGAIN and size == target)
        )
        chosen = _ONCE if from_once else _AGAIN
        return self._lists[chosen].first() or self._lists[1 - chosen].first()

    def _forget(self, node: Node, *, evicted: bool) -> None:
        self._sizes[node.queue] -= 1
        if evicted and self._leave_ghost:
            ghosts = self._ghosts[node.queue]
            ghosts[node.key] = None
            if len(ghosts) > self.capacity:  # the leaf rule or `resize` can break the paper's sums
                ghosts.popitem(last=False)
