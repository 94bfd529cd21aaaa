"""The default policy: keeps what will earn the most saved prefill per second of its room.

It refuses the clock, the future, and numbers tuned to one trace; and it refuses to do worse than
LRU for long (`adaptive_guard.py`).

Every turn of a chat touches its whole chain. So what counts is not how often a block was used but
whether its conversation goes on, and when. Policies that count uses keep the heads of dead sessions
and throw away the newest tails, which the next turn needs. This one asks of each block: who used it
last, what does that request look like, and how did blocks of such requests fare?

1. Memory outlives eviction: of every block, resident or one of the last that left, its last request
   and its touches. A request that reaches the last two blocks of an earlier one continues it; so
   its turn and the gaps between turns are known without a session id (`adaptive_request.py`).
2. One traced block per run of equal touches tells how long reuse took, or has not come yet
   (`adaptive_log.py`).
3. Two models learn P(reuse) by age from that: multiplicative rates (`adaptive_rates.py`) and a
   small net (`adaptive_net.py`); they are averaged (`adaptive_model.py`).
4. A block's index is the best of P(reuse before T) / E[time held until then] over all T
   (`adaptive_ages.py`), times a weight for depth: a token at depth 30,500 costs twice the prefill
   of the first one. DEPTH_EXPONENT 0 would count tokens alike, 1 seconds of prefill.
5. To evict, SAMPLE_LEAVES leaves are drawn and the lowest index goes, tail first; then its parent,
   as long as that is not worth more. New blocks compete like all others: that is admission.

Worked number: in moon_conv 31 % of first turns go on, half of those within 102 s, but 75 % of the
turns after the fifth, half within 117 s. With 8,544 blocks (5 %) LRU holds both for about three
minutes. Here the worse half of the first turns leaves room for the others: token hit ratio 0.231
against 0.198.

Cost: about 0.3 ms a request and 7 us a block, at most 20 training steps a second.
Bounded: RECORDS_MAX records, remembered blocks at most GHOSTS_PER_BLOCK x capacity +
GHOSTS_MIN. Nothing here is kept over a restart.
"""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Callable, Hashable, Sequence

from bul.cache.eviction.adaptive_guard import Guard, LruShadow
from bul.cache.eviction.adaptive_model import ReuseModel
from bul.cache.eviction.adaptive_request import RequestMemory, touch_class
from bul.cache.eviction.contract import Access
from bul.cache.eviction.tree import Node, TreePolicy

__all__ = ["Adaptive"]

SAMPLE_LEAVES = 64
GHOSTS_PER_BLOCK = 1
GHOSTS_MIN = 65_536
UNFINISHED_MAX = 4096
DEPTH_EXPONENT = 0.2
DEPTH_DOUBLING_TOKENS = 30_500.0

_Memory = tuple[RequestMemory, int]
"""Of a block: its last request and its touches."""


class _Block(Node):
    """A resident block: `count` touches, `stamp` its depth, `ticket` 1 while listed as a leaf."""

    __slots__ = ("last",)

    last: RequestMemory


class Adaptive(TreePolicy):
    """Learned time to reuse, guarded by LRU."""

    name = "adaptive"

    def __init__(
        self,
        capacity: int,
        seed: int = 0,
        *,
        ghosts_min: int = GHOSTS_MIN,
        unfinished_max: int = UNFINISHED_MAX,
    ) -> None:
        self._ghosts_min = ghosts_min
        self._unfinished_max = unfinished_max
        super().__init__(capacity, seed)
        self._random = random.Random(seed)
        self._model = ReuseModel(seed)
        self._guard = Guard()
        self._shadow = LruShadow(capacity)
        self._leaves: list[_Block] = []
        self._ghosts: collections.OrderedDict[Hashable, _Memory] = collections.OrderedDict()
        self._unfinished: collections.OrderedDict[Hashable, RequestMemory] = (
            collections.OrderedDict()
        )
        self._now_s = 0.0
        self._block_tokens = 0
        self._depth_weights: list[float] = []

    def access(self, access: Access) -> list[Hashable]:
        """Touch the resident prefix and insert the rest; returns the keys that left."""
        self._tick += 1
        self._now_s = max(self._now_s, access.now_s)
        path = access.path
        if not path:
            return []
        self._weigh_depths(len(path), access.block_tokens)
        resident, memories = self._recall(path)
        request = RequestMemory(self._tick, self._now_s, len(path), access.tenant)
        request.follows(memories[-1][0] if memories else None, len(memories))
        self._compare_with_lru(memories, len(resident), request)
        admitted = self._use(path, resident, memories, request)
        self._trace(path[: len(admitted)], admitted, request)
        self._expect_finish(path[-1], request)
        gone = [key for key in path[len(admitted) :] if key not in self._nodes]
        self._shrink(gone)
        return gone

    def finish(self, path: Sequence[Hashable], output_tokens: int) -> None:
        """The request over `path` ended: what its length says of its return is known now."""
        if path:
            request = self._unfinished.pop(path[-1], None)
            if request is not None:
                self._model.ended(request, output_tokens)
                self._model.prepare(request)

    def learn_with(self, submit: Callable[[Callable[[], None]], None]) -> None:
        """Hand what is learned to `submit`; see the contract."""
        self._model.submit = submit

    def resize(self, capacity: int) -> list[Hashable]:
        """Change the capacity; returns the keys that left."""
        self._shadow.resize(capacity)
        return super().resize(capacity)

    # one request

    def _recall(self, path: Sequence[Hashable]) -> tuple[list[_Block], list[_Memory]]:
        """The resident prefix, and what is remembered of the known prefix (at least as long)."""
        nodes, ghosts = self._nodes, self._ghosts
        resident: list[_Block] = []
        memories: list[_Memory] = []
        tip: Node | None = None
        for key in path:
            node = nodes.get(key)
            if node is None or node.parent is not tip:
                break
            assert isinstance(node, _Block)
            resident.append(node)
            memories.append((node.last, node.count))
            tip = node
        for key in path[len(resident) :]:
            memory = ghosts.get(key)
            if memory is None:
                break
            memories.append(memory)
        return resident, memories

    def _compare_with_lru(self, memories: list[_Memory], hits: int, request: RequestMemory) -> None:
        shadow = self._shadow
        shadow_hits = 0
        for depth, (last, _) in enumerate(memories):
            if not shadow.holds(last, depth):
                break
            shadow_hits += 1
        self._guard.judge(hits, shadow_hits, request.length)
        for depth, (last, _) in enumerate(memories):
            shadow.used(last, depth)
        shadow.admit(request)

    def _use(
        self,
        path: Sequence[Hashable],
        resident: list[_Block],
        memories: list[_Memory],
        request: RequestMemory,
    ) -> list[_Block]:
        """Make `request` the last user of its whole path; returns the blocks, root first."""
        for node in resident:
            self._release(node.last)
            node.last = request
            node.count += 1
        blocks = resident
        tip: _Block | None = blocks[-1] if blocks else None
        for depth in range(len(resident), len(path)):
            key = path[depth]
            if key in self._nodes:  # it hangs on another parent: no chain, no admission
                break
            tip = _Block(key, tip)
            tip.last, tip.stamp = request, depth
            tip.count = 1
            if depth < len(memories):
                tip.count += memories[depth][1]
                del self._ghosts[key]
            self._link(tip)
            blocks.append(tip)
        request.residents = len(blocks)
        if tip is not None:
            self._offer(tip)
        return blocks

    def _trace(
        self, path: Sequence[Hashable], blocks: list[_Block], request: RequestMemory
    ) -> None:
        """Answer the records of the path and open one for each run of equal touches."""
        log, now_s = self._model.log, self._now_s
        begin = 0
        classes = [touch_class(block.count) for block in blocks]
        request.tail_touches = classes[-1] if classes else 0
        for end, key in enumerate(path, start=1):
            log.touched(key, now_s)
            if end == len(path) or classes[end] != classes[begin]:
                drawn = begin + int(self._random.random() * (end - begin))
                log.trace(path[drawn], request, classes[begin], now_s)
                begin = end
        self._model.arrived(now_s)
        self._model.prepare(request)

    def _expect_finish(self, last_key: Hashable, request: RequestMemory) -> None:
        self._unfinished[last_key] = request
        if len(self._unfinished) > self._unfinished_max:
            self._unfinished.popitem(last=False)

    def _weigh_depths(self, length: int, block_tokens: int) -> None:
        if block_tokens != self._block_tokens:
            self._block_tokens = block_tokens
            self._depth_weights.clear()
        for depth in range(len(self._depth_weights), length):
            cost = 1.0 + depth * block_tokens / DEPTH_DOUBLING_TOKENS
            self._depth_weights.append(cost**DEPTH_EXPONENT)

    # eviction

    def _worth(self, block: _Block) -> float:
        """What is worth least goes first; without an opinion the oldest, as LRU."""
        last = block.last
        if self._guard.follow_lru or not self._model.ready:
            return float(last.number)
        index = self._model.index(last, touch_class(block.count), self._now_s - last.at_s)
        return index * self._depth_weights[block.stamp]

    def _shrink(self, gone: list[Hashable]) -> None:
        while len(self._nodes) > self.capacity:
            victim, worth = self._pick()
            if victim is None:
                break
            self._evict_upwards(victim, worth, gone)
        self._tidy()

    def _pick(self) -> tuple[_Block | None, float]:
        """The least worthy of the sampled leaves, `None` if no leaf may go."""
        leaves, draw = self._leaves, self._random.random
        best: _Block | None = None
        least = math.inf
        if len(leaves) <= SAMPLE_LEAVES:
            self._leaves = leaves = [leaf for leaf in leaves if self._listed(leaf)]
            drawn = leaves
        else:
            drawn = []
            while len(drawn) < SAMPLE_LEAVES and leaves:
                place = int(draw() * len(leaves))
                leaf = leaves[place]
                if self._listed(leaf):
                    drawn.append(leaf)
                else:
                    leaves[place] = leaves[-1]
                    leaves.pop()
        for leaf in drawn:
            worth = self._worth(leaf)
            if worth < least:
                best, least = leaf, worth
        return best, least

    def _listed(self, leaf: _Block) -> bool:
        """May `leaf` go? If not, it leaves the list; `_offer` lists it again when it may."""
        if leaf.ticket and leaf.first_child is None and not leaf.holds:
            return True
        leaf.ticket = 0
        return False

    def _evict_upwards(self, block: _Block, worth: float, gone: list[Hashable]) -> None:
        """Evict a leaf, then its ancestors while they are leaves and worth no more."""
        while True:
            parent = block.parent
            self._detach(block)
            gone.append(block.key)
            self._forget(block, evicted=True)
            if not isinstance(parent, _Block) or parent.first_child is not None or parent.holds:
                return
            if len(self._nodes) <= self.capacity or self._worth(parent) > worth:
                self._offer(parent)
                return
            block = parent

    def _offer(self, node: Node) -> None:
        assert isinstance(node, _Block)
        if node.first_child is None and not node.holds and not node.ticket:
            node.ticket = 1
            self._leaves.append(node)

    def _forget(self, node: Node, *, evicted: bool) -> None:
        assert isinstance(node, _Block)
        self._release(node.last)
        if evicted:
            self._ghosts[node.key] = (node.last, node.count)

    def _release(self, request: RequestMemory) -> None:
        request.residents -= 1
        if not request.residents:
            request.curves = None

    def _tidy(self) -> None:
        """Keep what is remembered of absent blocks, and the list of leaves, within their limits."""
        ghosts = self._ghosts
        while len(ghosts) > GHOSTS_PER_BLOCK * self.capacity + self._ghosts_min:
            ghosts.popitem(last=False)  # a plain dict would search its emptied front each time
        if len(self._leaves) > 2 * len(self._nodes) + SAMPLE_LEAVES:
            self._leaves = [leaf for leaf in self._leaves if self._listed(leaf)]
