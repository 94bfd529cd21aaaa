"""A tier with a probe: the lane asks for a sign of life by itself, so that no request waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.quantised import Int8Codec, QuantisedTier
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable
from bul.testing.clock import ManualClock
from bul.testing.engines import BLOCK_TOKENS, cached, chain, store
from bul.testing.tiers import Fault, FaultyTier, MemoryTier
from bul.testing.waiting import eventually

DOWN = Fault(error=TierUnavailable("gone"))


class ProbedTier(FaultyTier):
    """Counts its probes; `down` makes every call fail."""

    def __init__(self) -> None:
        super().__init__(MemoryTier(), lambda _: DOWN if self.down else Fault())
        self.down = False
        self.probes = 0

    def probe(self) -> None:
        self.probes += 1
        if self.down:
            raise TierUnavailable("gone")


Scene = tuple[UltraAdaptiveKVCacheEngine, ProbedTier, ManualClock]


@pytest.fixture
def scene() -> Iterator[Scene]:
    tier, clock = ProbedTier(), ManualClock()
    config = KVCacheConfig(block_tokens=BLOCK_TOKENS, max_tokens=400, eviction="lru")
    engine = UltraAdaptiveKVCacheEngine(config, tiers=[tier], clock=clock)
    yield engine, tier, clock
    engine.close()


def shut_off(engine: UltraAdaptiveKVCacheEngine) -> bool:
    return bool(engine.stats()["memory"]["read_breaker_open"])


def match_is_settled(engine: UltraAdaptiveKVCacheEngine) -> bool:
    match = engine.match_prefix(chain(3))
    settled = match.settled
    match.release()
    return settled


async def test_one_failed_request_is_enough_to_open_the_breaker(scene: Scene) -> None:
    engine, tier, _ = scene
    tier.down = True
    assert cached(engine, chain(3)) == 0
    await eventually("the probes open it", lambda: shut_off(engine))
    assert tier.probes == 2
    assert match_is_settled(engine), "nobody waits for a tier that is shut off"


async def test_after_the_pause_a_probe_goes_and_no_request(scene: Scene) -> None:
    engine, tier, clock = scene
    store(engine, chain(3))
    assert engine.flush()
    tier.down = True
    engine.clear_ram()
    cached(engine, chain(3))
    await eventually("the probes open it", lambda: shut_off(engine))
    probes = tier.probes
    clock.advance(1.5)
    assert match_is_settled(engine), "the probe is out, the request does not wait for it"
    await eventually("it was probed", lambda: tier.probes == probes + 1)
    tier.down = False
    clock.advance(6.0)
    assert match_is_settled(engine)
    await eventually("the probe closes it", lambda: not shut_off(engine))
    assert cached(engine, chain(3)) == 3


def test_a_quantised_tier_has_a_probe_exactly_if_the_tier_behind_it_has_one() -> None:
    codec = Int8Codec(groups=2, tokens=4, row_bytes=8)
    assert hasattr(QuantisedTier(ProbedTier(), codec), "probe")
    assert not hasattr(QuantisedTier(MemoryTier(), codec), "probe")
    assert not hasattr(QuantisedTier(MemoryTier(), codec), "delete_values")


async def test_who_was_queued_before_the_breaker_opened_goes_on_at_once(scene: Scene) -> None:
    engine, tier, _ = scene
    tier.down = True
    cached(engine, chain(3))
    await eventually("the probes open it", lambda: shut_off(engine))
    tier.down = False
    assert engine.presence(chain(3))["memory"] == [False] * 3
    assert tier.inner.calls == [], "nothing but a probe is asked"  # type: ignore[attr-defined]  # MemoryTier's
