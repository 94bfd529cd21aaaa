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
5. To evict, SAMPLE_LEAVES leaves are drawn and compared with the POOL_LEAVES that came nearest to
   going last time; the lowest index goes, tail first, then its parent, as long as that is not worth
   more. New blocks compete like all others: that is admission.

Worked number: in moon_conv 31 % of first turns go on, half of those within 102 s, but 75 % of the
turns after the fifth, half within 117 s. With 8,544 blocks (5 %) LRU holds both for about three
minutes. Here the worse half of the first turns leaves room for the others: token hit ratio 0.231
against 0.198.

What learns and what is asked are apart (`adaptive_model.py`): a request only notes what happened
and reads curves that are there, in about 0.1 ms (LRU 0.05); what takes longer runs in a thread of
its own in the engine, at once in a replay. It is the same code, with the same decisions if the
thread keeps up.

The constants, here and in the parts, were chosen on the four traces of ../shared/data at 1, 5 and
10 % of their blocks: what they gain there is in-sample (docs/reference/eviction.md).

Bounded: RECORDS_MAX records, remembered blocks at most GHOSTS_PER_BLOCK x capacity +
GHOSTS_MIN. Nothing here is kept over a restart.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Hashable, Sequence

from bul.cache.eviction.adaptive_ghosts import Ghosts
from bul.cache.eviction.adaptive_guard import Guard, LruShadow
from bul.cache.eviction.adaptive_model import ReuseModel
from bul.cache.eviction.adaptive_request import RequestMemory, tenant_class, touch_class
from bul.cache.eviction.contract import Access
from bul.cache.eviction.tree import Node, TreePolicy

__all__ = ["Adaptive"]

SAMPLE_LEAVES = 64
POOL_LEAVES = 16
GHOSTS_PER_BLOCK = 1
GHOSTS_MIN = 65_536
UNFINISHED_MAX = 4096
DEPTH_EXPONENT = 0.2
DEPTH_DOUBLING_TOKENS = 30_500.0

_Run = tuple[RequestMemory, int, int]
"""Blocks [begin, end) of a path that have one last request."""


class _Block(Node, gc=False, eq=False, kw_only=True):
    """A resident block: `count` touches, `stamp` its depth, `ticket` its place in `_leaves` + 1."""

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
        self._leaves: list[_Block] = []  # all that may go, in no order
        self._pool: list[_Block] = []  # those that came nearest to going
        self._ghosts = Ghosts()
        self._unfinished: collections.OrderedDict[Hashable, RequestMemory] = (
            collections.OrderedDict()
        )
        self._now_s = 0.0
        self._block_tokens = 0
        self._depth_weights: list[float] = []

    def access(self, access: Access) -> list[Hashable]:
        """Touch the resident prefix and insert the rest; returns the keys that left."""
        self._now_s = max(self._now_s, access.now_s)
        path = access.path
        if not path:
            return []
        self._weigh_depths(len(path), access.block_tokens)
        if access.speculative:
            return self._restore(path)
        request, begin = self._requester(access)
        resident, runs, known = self._recall(path, begin)
        if runs or not begin:
            request.follows(runs[-1][0] if runs else None, known)
        self._compare_with_lru(runs, len(resident), request, begin)
        blocks = self._use(path, begin, resident, runs, request)
        self._trace(path, begin, blocks, request)
        self._expect_finish(path[-1], request)
        gone = [key for key in path[begin + len(blocks) :] if key not in self._nodes]
        self._shrink(gone)
        return gone

    def finish(self, path: Sequence[Hashable], output_tokens: int) -> None:
        """The request over `path` ended: what its length says of its return is known now."""
        if path:
            request = self._unfinished.pop(path[-1], None)
            if request is not None:
                self._model.ended(request, output_tokens)

    def learn_with(self, submit: Callable[[Callable[[], None]], None]) -> None:
        """Hand what is learned to `submit`; see the contract."""
        self._model.submit = submit

    def hold(self, key: Hashable) -> None:
        """A resident key is in use until as many `unhold`s came. KeyError if not resident."""
        super().hold(key)
        self._unlist(self._nodes[key])

    def resize(self, capacity: int) -> list[Hashable]:
        """Change the capacity; returns the keys that left."""
        self._shadow.resize(capacity)
        return super().resize(capacity)

    # one request

    def _requester(self, access: Access) -> tuple[RequestMemory, int]:
        """Who asks, and how much of the path it has used before (it comes in several calls)."""
        path, begin = access.path, access.touched
        if begin and path[begin - 1] in self._nodes:
            request = self._unfinished.pop(path[begin - 1], None)
            if request is not None:
                request.length = max(request.length, len(path))
                return request, begin
        self._tick += 1
        tenant = tenant_class(access.tenant)
        return RequestMemory(self._tick, self._now_s, len(path), tenant), 0

    def _recall(self, path: Sequence[Hashable], begin: int) -> tuple[list[_Block], list[_Run], int]:
        """Of path[begin:] the resident prefix, who used what is known last, and where that ends."""
        nodes, ghosts = self._nodes, self._ghosts.by_key
        resident: list[_Block] = []
        runs: list[_Run] = []
        last: RequestMemory | None = None
        parent = path[begin - 1] if begin else None
        since = depth = begin
        for key in path[begin:]:
            node = nodes.get(key)
            if node is None or node.parent != parent:
                break
            resident.append(node)  # type: ignore[arg-type]  # all nodes here are blocks
            if node.last is not last:  # type: ignore[attr-defined]  # as above
                if last is not None:
                    runs.append((last, since, depth))
                last, since = node.last, depth  # type: ignore[attr-defined]  # as above
            parent = key
            depth += 1
        for key in path[depth:]:
            ghost = ghosts.get(key)
            if ghost is None:
                break
            if ghost.last is not last:
                if last is not None:
                    runs.append((last, since, depth))
                last, since = ghost.last, depth
            depth += 1
        if last is not None:
            runs.append((last, since, depth))
        return resident, runs, depth

    def _compare_with_lru(
        self, runs: list[_Run], hits: int, request: RequestMemory, begin: int
    ) -> None:
        asked = request.length - begin
        self._guard.judge(hits, self._shadow.use(runs), asked)
        self._shadow.admit(request, asked)

    def _use(
        self,
        path: Sequence[Hashable],
        begin: int,
        resident: list[_Block],
        runs: list[_Run],
        request: RequestMemory,
    ) -> list[_Block]:
        """Make `request` the last user of path[begin:]; returns the blocks, root first."""
        nodes, ghosts = self._nodes, self._ghosts
        remembered = ghosts.by_key
        for node in resident:
            node.last = request
            node.count += 1
        end = begin + len(resident)
        for last, run_begin, run_end in runs:
            self._release(last, min(run_end, end) - run_begin)
        blocks = resident
        tip = nodes[path[end - 1]] if end else None
        if tip is not None and end < len(path):
            self._unlist(tip)
        for depth in range(end, len(path)):
            key = path[depth]
            if key in nodes:  # it hangs on another parent: no chain, no admission
                break
            node = _Block(key, tip.key if tip is not None else None, last=request)
            node.stamp = depth
            node.count = 1 + ghosts.take(key) if key in remembered else 1
            self._link(node, tip)
            blocks.append(node)
            tip = node
        request.residents += len(blocks)
        if tip is not None:
            self._offer(tip)
        return blocks

    def _trace(
        self, path: Sequence[Hashable], begin: int, blocks: list[_Block], request: RequestMemory
    ) -> None:
        """Answer the records of the path and open one for each run of equal touches."""
        log, now_s = self._model.log, self._now_s
        tracers = log.tracers
        for block in blocks:
            if block.key in tracers:
                log.touched(block.key, now_s)
        classes = [touch_class(block.count) for block in blocks]
        run = 0
        for end in range(1, len(classes) + 1):
            if end == len(classes) or classes[end] != classes[run]:
                drawn = run + int(self._random.random() * (end - run))
                log.trace(path[begin + drawn], request, classes[run], now_s)
                request.touches |= 1 << classes[run]
                run = end
        self._model.arrived(request, now_s)

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

    def _restore(self, path: Sequence[Hashable]) -> list[Hashable]:
        """Insert what is missing while there is room, as its last request left it.

        Of what nobody remembers (after a restart) the last request is one that came just now, once,
        and is older than all others for LRU.
        """
        nodes = self._nodes
        length = self.match(path)
        tip = nodes[path[length - 1]] if length else None
        if tip is not None and length < len(path):
            self._unlist(tip)
        self._speculated -= 1
        stranger = RequestMemory(self._speculated, self._now_s, len(path), touches=1)
        while length < len(path) and path[length] not in nodes and len(nodes) < self.capacity:
            key = path[length]
            ghost = self._ghosts.by_key.get(key)
            last = ghost.last if ghost is not None else stranger
            node = _Block(key, tip.key if tip is not None else None, last=last)
            node.stamp = length
            node.count = self._ghosts.take(key) if ghost is not None else 1
            last.residents += 1
            self._link(node, tip)
            self._model.want(last)
            tip = node
            length += 1
        if tip is not None:
            self._offer(tip)
        return [key for key in path[length:] if key not in nodes]

    # eviction

    def _worths(self, blocks: Sequence[_Block]) -> list[float]:
        """What is worth least goes first; without an opinion the oldest, as LRU."""
        if self._guard.follow_lru or not self._model.ready:
            return [block.last.number for block in blocks]
        return self._model.worths(blocks, self._now_s, self._depth_weights)

    def _shrink(self, gone: list[Hashable]) -> None:
        while len(self._nodes) > self.capacity:
            victim, worth = self._pick()
            if victim is None:
                break
            self._evict_upwards(victim, worth, gone)
        self._ghosts.trim(GHOSTS_PER_BLOCK * self.capacity + self._ghosts_min)

    def _pick(self) -> tuple[_Block | None, float]:
        """The least worthy of the sampled leaves, `None` if no leaf may go."""
        drawn, draw = self._leaves, self._random.random
        count = len(drawn)
        if count > SAMPLE_LEAVES + POOL_LEAVES:
            pool = [leaf for leaf in self._pool if leaf.ticket]
            pool += [drawn[int(draw() * count)] for _ in range(SAMPLE_LEAVES)]
            drawn = list(dict.fromkeys(pool))  # each once, in an order that a seed repeats
        if not drawn:
            return None, 0.0
        worths = self._worths(drawn)
        ranked = sorted(range(len(drawn)), key=worths.__getitem__)
        self._pool = [drawn[place] for place in ranked[1 : POOL_LEAVES + 1]]
        return drawn[ranked[0]], worths[ranked[0]]

    def _evict_upwards(self, block: _Block, worth: float, gone: list[Hashable]) -> None:
        """Evict a leaf, then its ancestors while they are leaves and worth no more."""
        while True:
            above = block.parent
            self._detach(block)
            gone.append(block.key)
            self._forget(block, evicted=True)
            if above is None:
                return
            parent = self._nodes[above]
            assert isinstance(parent, _Block)
            if parent.first_child is not None or parent.holds:
                return
            # Of one request and one touch class the shallower block is never worth more.
            alike = parent.last is block.last and parent.count == block.count
            if len(self._nodes) <= self.capacity or not (
                alike or self._worths((parent,))[0] <= worth
            ):
                self._offer(parent)
                return
            block = parent

    def _detach(self, node: Node) -> None:
        self._unlist(node)
        super()._detach(node)

    def _offer(self, node: Node) -> None:
        """List `node` among those that may go, if it may."""
        assert isinstance(node, _Block)
        if node.first_child is None and not node.holds and not node.ticket:
            self._leaves.append(node)
            node.ticket = len(self._leaves)

    def _unlist(self, node: Node) -> None:
        """`node` may not go now, or is gone."""
        place = node.ticket - 1
        if place >= 0:
            node.ticket = 0
            other = self._leaves.pop()
            if other is not node:
                self._leaves[place] = other
                other.ticket = place + 1

    def _forget(self, node: Node, *, evicted: bool) -> None:
        assert isinstance(node, _Block)
        self._release(node.last, 1)
        if evicted:
            self._ghosts.add(node.key, node.last, node.count)

    def _release(self, request: RequestMemory, blocks: int) -> None:
        """`blocks` resident blocks of `request`, if that is more than none, are its no more."""
        if blocks > 0:
            request.residents -= blocks
            if not request.residents:
                request.curves = b""
