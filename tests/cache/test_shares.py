"""A tenant's share of the RAM: it holds, and it costs others nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bul.blocks.prefix import RequestFacts
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.config import KVCacheConfig
from bul.testing.engines import BLOCK_TOKENS, cached, chain, settled, store

NOISY, QUIET = RequestFacts(tenant="noisy"), RequestFacts(tenant="quiet")

Make = Callable[[float], UltraAdaptiveKVCacheEngine]


@pytest.fixture(params=["lru", "adaptive", "arc", "s3fifo"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    engines = []

    def build(share: float) -> UltraAdaptiveKVCacheEngine:
        config = KVCacheConfig(
            eviction=request.param,
            block_tokens=BLOCK_TOKENS,
            max_tokens=40 * BLOCK_TOKENS,
            tenant_share_max=share,
        )
        engines.append(UltraAdaptiveKVCacheEngine(config))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def flood(engine: UltraAdaptiveKVCacheEngine) -> None:
    for number in range(100):
        store(engine, chain(6, 1000 * (number + 10)), facts=NOISY)


def test_a_noisy_tenant_stays_within_its_share_and_others_keep_theirs(make: Make) -> None:
    engine = make(0.5)
    store(engine, chain(8), facts=QUIET)
    flood(engine)
    assert cached(engine, chain(8)) == 8
    assert engine.stats()["ram"]["blocks"] <= 8 + 20
    assert engine.stats()["ram"]["over_share_evictions_total"] > 0


def test_without_shares_the_noisy_one_takes_all() -> None:
    config = KVCacheConfig(eviction="lru", block_tokens=BLOCK_TOKENS, max_tokens=40 * BLOCK_TOKENS)
    engine = UltraAdaptiveKVCacheEngine(config)
    store(engine, chain(8), facts=QUIET)
    flood(engine)
    assert cached(engine, chain(8)) == 0
    engine.close()


def test_a_path_longer_than_the_share_keeps_its_head(make: Make) -> None:
    engine = make(0.25)
    store(engine, chain(30), facts=NOISY)
    assert cached(engine, chain(30)) == 10


def test_what_a_tenant_holds_is_not_taken_from_it(make: Make) -> None:
    engine = make(0.25)
    store(engine, chain(10), facts=NOISY)
    match = settled(engine.match_prefix(chain(10), NOISY))
    flood(engine)
    assert cached(engine, chain(10)) == 10
    match.release()


def test_a_shared_beginning_outlives_its_oldest_tail(make: Make) -> None:
    engine = make(0.25)
    start = chain(4)
    for number in range(8):
        keys = start + [bytes([number, i]) * 16 for i in range(3)]
        store(engine, keys, facts=NOISY)
        assert cached(engine, start) == 4
    assert engine.stats()["ram"]["blocks"] <= 10
