"""The tree of resident keys that every eviction policy shares, and the walk of one request over it.

It refuses to judge: which leaf goes next is the subclass's `_victim`. It keeps the rules that all
policies have in common, so that a policy cannot break them:

- the resident set is prefix-closed: only a leaf (no resident child) leaves;
- a held leaf does not leave, and its ancestors cannot, since they have a resident child;
- room is made before a block comes in, never by the request's own blocks: a path longer than the
  cache keeps its head. A policy that lets the new blocks compete overrides `access`.

A published policy is written for single keys. Here a request touches a whole path, and a leaf is
all that may leave, so each one is adapted the same way: its queues or lists keep their published
order, and the victim is the first *unheld leaf* in that order. With paths of length one every block
is a leaf, and the policy is exactly the published one; the tests compare it that way.

Order among leaves is a heap with lazy deletion. A request changes the order of one leaf (the end of
its path), and an eviction makes at most one new leaf (the parent), so a request costs
O(path + evicted x log n) and inner blocks are never in a heap at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence

import msgspec

from bul.cache.eviction.contract import Access

__all__ = ["LeafHeap", "Node", "TreePolicy"]

HEAP_SLACK = 64
"""A heap is rebuilt when it is longer than twice the residents plus this."""


class Node(msgspec.Struct, gc=False, eq=False):
    """One resident block. `ticket` is 0 unless the node lies in a heap as a candidate.

    Relatives are named by key. So nodes form no cycles, and the garbage collector need not know
    them: among a million blocks it stopped the process for 0.4 s. (References to parents alone
    would do too, but freeing a long chain of them would recurse.)
    """

    key: Hashable
    parent: Hashable | None
    first_child: Hashable | None = None
    next_sibling: Hashable | None = None
    previous_sibling: Hashable | None = None
    holds: int = 0
    ticket: int = 0
    stamp: int = 0
    count: int = 0
    queue: int = 0


class LeafHeap:
    """Candidates by priority, least first; stale entries are dropped when they come up."""

    __slots__ = ("_entries", "queue")

    def __init__(self, queue: int = 0) -> None:
        self._entries: list[tuple[int, int, int, Node]] = []
        self.queue = queue

    def push(self, node: Node, major: int, minor: int = 0) -> None:
        """Add `node`, whose `ticket` is set and unique; it sorts by (major, minor, ticket)."""
        heapq.heappush(self._entries, (major, minor, node.ticket, node))

    def first(self) -> Node | None:
        """The least candidate, which stays; `None` if there is none."""
        entries = self._entries
        while entries:
            _, _, ticket, node = entries[0]
            if node.ticket == ticket and node.queue == self.queue:
                if node.first_child is None and not node.holds:
                    return node
                node.ticket = 0
            heapq.heappop(entries)
        return None

    def compact(self, residents: int) -> None:
        """Drop stale entries once they outnumber the residents."""
        if len(self._entries) > 2 * residents + HEAP_SLACK:
            queue = self.queue
            self._entries = [
                entry
                for entry in self._entries
                if entry[3].ticket == entry[2] and entry[3].queue == queue
            ]
            heapq.heapify(self._entries)


class TreePolicy:
    """The base of all policies; see the module's text. Subclasses fill in the five hooks."""

    name = ""

    def __init__(self, capacity: int, seed: int = 0) -> None:
        assert capacity >= 1, "make_policy checks the capacity"
        self.capacity = capacity
        self._nodes: dict[Hashable, Node] = {}
        self._tick = 0  # requests so far
        self._ticket = 0
        self._speculated = 0  # counts down
        self._heaps: tuple[LeafHeap, ...] = ()

    # hooks

    def _touch(self, node: Node) -> None:
        """A resident block of the path was used."""

    def _miss(self, key: Hashable) -> None:
        """`key` is about to come in; room has not been made yet."""

    def _victim(self) -> Node | None:
        """The unheld leaf that goes next, or `None` if there is none."""
        raise AssertionError

    def _start(self, node: Node) -> None:
        """A new block came in; it has its tree links but no order yet."""

    def _enqueue(self, node: Node) -> None:
        """`node` (an unheld leaf with a fresh `ticket`) becomes a candidate."""

    def _forget(self, node: Node, *, evicted: bool) -> None:
        """`node` left, by eviction or by `remove`."""

    # the contract

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._nodes

    def match(self, path: Sequence[Hashable]) -> int:
        """Length of the longest resident prefix of `path`. Does not modify the policy."""
        nodes = self._nodes
        parent: Hashable | None = None
        for length, key in enumerate(path):
            node = nodes.get(key)
            if node is None or node.parent != parent:
                return length
            parent = key
        return len(path)

    def access(self, access: Access) -> list[Hashable]:
        """Touch the resident prefix and insert the rest; returns the keys that left."""
        self._tick += not access.touched  # a later part of a request is no request of its own
        path = access.path
        if access.speculative:
            return self._speculate(path)
        matched, length = self._walk(path, access.touched)
        if matched is not None:
            matched.holds += 1  # losing its last child must not make it a candidate yet
        tip = matched
        gone: list[Hashable] = []
        while length < len(path) and path[length] not in self._nodes:
            self._miss(path[length])
            if not self._make_room(gone):
                break
            tip = self._insert(path[length], tip)
            self._start(tip)
            length += 1
        gone.extend(key for key in path[length:] if key not in self._nodes)
        if matched is not None:
            matched.holds -= 1
        if tip is not None:
            self._offer(tip)
        self._shrink(gone)
        self._compact()
        return gone

    def finish(self, path: Sequence[Hashable], output_tokens: int) -> None:
        """The request over `path` ended; the published policies have no use for that."""

    def learn_with(self, submit: Callable[[Callable[[], None]], None]) -> None:
        """The published policies have nothing to learn."""

    def hold(self, key: Hashable) -> None:
        """A resident key is in use until as many `unhold`s came. KeyError if not resident."""
        self._nodes[key].holds += 1

    def unhold(self, key: Hashable) -> None:
        node = self._nodes.get(key)
        if node is None:  # taken out by `remove` while held
            return
        assert node.holds > 0, "unhold without hold"
        node.holds -= 1
        self._offer(node)

    def remove(self, key: Hashable) -> list[Hashable]:
        """Take a key and all its resident descendants out, held or not; returns them."""
        top = self._nodes.get(key)
        if top is None:
            return []
        family = [top]
        for node in family:  # grows while it is walked: parents before children
            child = node.first_child
            while child is not None:
                family.append(self._nodes[child])
                child = family[-1].next_sibling
        for node in reversed(family):
            self._detach(node)
            self._forget(node, evicted=False)
        if top.parent is not None:
            self._offer(self._nodes[top.parent])
        return [node.key for node in family]

    def resize(self, capacity: int) -> list[Hashable]:
        """Change the capacity; returns the keys that left."""
        assert capacity >= 1, "a policy holds at least one block"
        self.capacity = capacity
        gone: list[Hashable] = []
        self._shrink(gone)
        self._compact()
        return gone

    # the tree

    def _walk(self, path: Sequence[Hashable], touched: int) -> tuple[Node | None, int]:
        """Touch the resident prefix beyond `touched`; returns its last node and its length."""
        nodes, touch = self._nodes, self._touch
        tip: Node | None = None
        parent: Hashable | None = None
        for length, key in enumerate(path):
            node = nodes.get(key)
            if node is None or node.parent != parent:
                return tip, length
            if length >= touched:
                touch(node)
            tip, parent = node, key
        return tip, len(path)

    def _speculate(self, path: Sequence[Hashable]) -> list[Hashable]:
        """Insert what is missing while there is room; returns what was not admitted.

        What was inserted later is wanted less: it sorts before what was used and what came first.
        """
        length = self.match(path)
        tip = self._nodes[path[length - 1]] if length else None
        while length < len(path) and path[length] not in self._nodes:
            if len(self._nodes) >= self.capacity:
                break
            tip = self._insert(path[length], tip)
            self._start(tip)
            self._speculated -= 1
            tip.stamp = self._speculated
            length += 1
        if tip is not None:
            self._offer(tip)
        return [key for key in path[length:] if key not in self._nodes]

    def _make_room(self, gone: list[Hashable]) -> bool:
        """Evict until one more block fits; False if nothing may leave."""
        while len(self._nodes) >= self.capacity:
            victim = self._victim()
            if victim is None:
                return False
            self._evict(victim, gone)
        return True

    def _shrink(self, gone: list[Hashable]) -> None:
        """Evict what is above capacity, as far as holds allow."""
        while len(self._nodes) > self.capacity:
            victim = self._victim()
            if victim is None:
                break
            self._evict(victim, gone)

    def _insert(self, key: Hashable, parent: Node | None) -> Node:
        node = Node(key, parent.key if parent is not None else None)
        self._link(node, parent)
        return node

    def _link(self, node: Node, parent: Node | None) -> None:
        nodes = self._nodes
        nodes[node.key] = node
        if parent is not None:
            sibling = parent.first_child
            if sibling is not None:
                node.next_sibling = sibling
                nodes[sibling].previous_sibling = node.key
            parent.first_child = node.key

    def _detach(self, node: Node) -> None:
        """Take a leaf out of the tree."""
        nodes = self._nodes
        del nodes[node.key]
        before, after = node.previous_sibling, node.next_sibling
        if before is not None:
            nodes[before].next_sibling = after
        elif node.parent is not None:
            nodes[node.parent].first_child = after
        if after is not None:
            nodes[after].previous_sibling = before
        node.ticket = 0

    def _evict(self, node: Node, gone: list[Hashable]) -> None:
        self._detach(node)
        gone.append(node.key)
        self._forget(node, evicted=True)
        if node.parent is not None:
            self._offer(self._nodes[node.parent])

    def _offer(self, node: Node) -> None:
        """Make `node` a candidate, unless it may not leave."""
        if node.first_child is None and not node.holds:
            self._ticket += 1
            node.ticket = self._ticket
            self._enqueue(node)

    def _compact(self) -> None:
        residents = len(self._nodes)
        for heap in self._heaps:
            heap.compact(residents)
