"""The engine over tiers that fail at random: never a wrong block, never a match that hangs.

The control is `test_the_harness_sees_a_wrong_block`: a tier that swaps payloads unnoticed, which no
real tier may be, is caught by the same assertion.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bul.blocks.chain import block_keys, chain_root
from bul.blocks.prefix import Buffer, PrefixMatch, RequestFacts
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.config import KVCacheConfig
from bul.testing.clock import ManualClock
from bul.testing.tiers import Fault, FaultyTier, MemoryTier

BLOCK_TOKENS = 2
BLOCK_BYTES = 64
ROOT = chain_root(bytes(32), b"chaos")
FAULTS = (
    Fault(),
    Fault(),
    Fault(),
    Fault(error=OSError(5, "EIO")),
    Fault(delay_s=0.0005),
    Fault(hang=True),
    Fault(lies=True, answer=None),
    Fault(lies=True, answer=10**6),
    Fault(lies=True, answer=[]),
    Fault(lies=True, answer=[b"x"]),
)


def payload(key: bytes) -> bytes:
    return (key * 2)[:BLOCK_BYTES]


class Chaos(RuleBasedStateMachine):
    """Requests, their ends, time, deletes; two faulty tiers; one small RAM."""

    @initialize(
        seed=st.integers(0, 2**32),
        ram_blocks=st.sampled_from([1, 3, 12]),
        window=st.sampled_from([0, 2, 5]),
        ttl_s=st.sampled_from([0.0, 5.0]),
        share=st.sampled_from([1.0, 0.4]),
        eviction=st.sampled_from(["lru", "adaptive"]),
    )
    def start(
        self, seed: int, ram_blocks: int, window: int, ttl_s: float, share: float, eviction: str
    ) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.tiers = [
            FaultyTier(MemoryTier(name, self.clock.wall_s), self.choose)
            for name in ("disk", "shared")
        ]
        self.engine = UltraAdaptiveKVCacheEngine(
            KVCacheConfig(
                eviction=eviction,
                tenant_share_max=share,
                block_tokens=BLOCK_TOKENS,
                max_tokens=ram_blocks * BLOCK_TOKENS,
                prefetch_size=window,
                ttl_s=ttl_s,
                tier_deadline_s=1.0,
                claim_age_s_max=10.0,
            ),
            tiers=self.tiers,
            clock=self.clock,
            block_bytes=BLOCK_BYTES,
        )
        self.matches: list[tuple[list[bytes], PrefixMatch]] = []

    def choose(self, method: str) -> Fault:
        return Fault() if method == "close" else self.random.choice(FAULTS)

    def facts(self, branch: int) -> RequestFacts:
        priority = self.random.choice(["interactive", "batch", "prefetch", "?"])
        return RequestFacts(tenant=str(branch % 2), priority=priority)

    def path(self, branch: int, blocks: int) -> list[bytes]:
        tokens = [0] * 4 + [branch] * (2 * blocks)
        return block_keys(ROOT, tokens, BLOCK_TOKENS)

    @rule(branch=st.integers(0, 5), blocks=st.integers(0, 8))
    def ask(self, branch: int, blocks: int) -> None:
        keys, facts = self.path(branch, blocks), self.facts(branch)
        self.matches.append((keys, self.engine.match_prefix(keys, facts)))

    @rule(pick=st.integers(0, 20), part=st.floats(0, 1))
    def compute(self, pick: int, part: float) -> None:
        settled = [pair for pair in self.matches if pair[1].settled]
        if not settled:
            return
        keys, match = settled[pick % len(settled)]
        first = len(match.blocks)
        last = first + round(part * (len(keys) - first))
        self.engine.set_blocks(keys[:last], first, [payload(key) for key in keys[first:last]])

    @rule(pick=st.integers(0, 20))
    def leave(self, pick: int) -> None:
        if self.matches:
            _, match = self.matches.pop(pick % len(self.matches))
            match.release()

    @rule(seconds=st.sampled_from([0.1, 1.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.engine.tick()

    @rule(branch=st.integers(0, 5), blocks=st.integers(0, 8))
    def pin(self, branch: int, blocks: int) -> None:
        if not self.engine.unpin(self.path(branch, blocks)):
            self.engine.pin(self.path(branch, blocks))

    @rule()
    def forget(self) -> None:
        self.engine.clear_ram()

    @rule()
    def measure(self) -> None:
        self.engine.observe_prefill(self.random.randrange(100), self.random.random())
        self.engine.stats()

    @invariant()
    def every_block_is_right(self) -> None:
        for keys, match in getattr(self, "matches", ()):
            assert_right(keys, match.blocks)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(100):  # whoever waits, waits for a claim or a deadline: both end
            if all(match.settled for _, match in self.matches):
                break
            self.clock.advance(11.0)
            self.engine.tick()
            threading.Event().wait(0.001)
        for keys, match in self.matches:
            assert match.settled
            assert_right(keys, match.blocks)
            match.release()
        assert self.engine.stats()["engine"]["matches_alive"] == 0
        for tier in self.tiers:
            tier.unhang()
        assert self.engine.close()


def assert_right(keys: Sequence[bytes], blocks: Sequence[Buffer]) -> None:
    assert [bytes(block) for block in blocks] == [payload(key) for key in keys[: len(blocks)]]


TestChaos = Chaos.TestCase
TestChaos.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, derandomize=True
)


class LongChaos(Chaos):
    """The same for longer."""


TestLongChaos = pytest.mark.nightly(LongChaos.TestCase)
TestLongChaos.settings = settings(max_examples=1000, stateful_step_count=60, deadline=None)


def test_the_harness_sees_a_wrong_block() -> None:
    tier = MemoryTier()
    keys = block_keys(ROOT, range(8), BLOCK_TOKENS)
    first = UltraAdaptiveKVCacheEngine(
        KVCacheConfig(eviction="lru", block_tokens=BLOCK_TOKENS), tiers=[tier]
    )
    first.set_blocks(keys, 0, [payload(key) for key in keys])
    first.close()
    tier.records[keys[0]], tier.records[keys[1]] = tier.records[keys[1]], tier.records[keys[0]]
    second = UltraAdaptiveKVCacheEngine(
        KVCacheConfig(eviction="lru", block_tokens=BLOCK_TOKENS), tiers=[tier]
    )
    match = second.match_prefix(keys)
    ready = threading.Event()
    match.when_settled(ready.set)
    assert ready.wait(30)
    with pytest.raises(AssertionError):
        assert_right(keys, match.blocks)
    match.release()
    second.close()
