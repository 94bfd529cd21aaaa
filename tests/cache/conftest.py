"""Engines over any tiers, and disk tiers over one folder, closed when their test ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bul.blocks.identity import Identity
from bul.cache.contract import Tier
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk import DiskTier
from bul.config import KVCacheConfig
from bul.testing.clock import ManualClock
from bul.testing.disk_folder import IDENTITY, MIB, Open
from bul.testing.engines import BLOCK_TOKENS, MakeEngine


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make(clock: ManualClock) -> Iterator[MakeEngine]:
    """Engines with an LRU of a hundred blocks, unless the test says otherwise."""
    engines: list[UltraAdaptiveKVCacheEngine] = []

    def build(
        *tiers: Tier, block_bytes: int = 64, **settings: object
    ) -> UltraAdaptiveKVCacheEngine:
        settings = {"eviction": "lru", "block_tokens": BLOCK_TOKENS, "max_tokens": 400} | settings
        engine = UltraAdaptiveKVCacheEngine(
            KVCacheConfig(**settings),  # type: ignore[arg-type]  # a mixed dict
            tiers=tiers,
            clock=clock,
            block_bytes=block_bytes,
        )
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.close()


@pytest.fixture
def open_tier(tmp_path: Path) -> Iterator[Open]:
    """Opens tiers over one folder; closes what the test left open."""
    tiers: list[DiskTier] = []

    def opened(identity: Identity | bytes = IDENTITY, **options: object) -> DiskTier:
        options = {"bytes_max": 64 * MIB, "fsync": "none", **options}
        tier = DiskTier(tmp_path / "kv", identity, **options)  # type: ignore[arg-type]  # by name
        tiers.append(tier)
        return tier

    yield opened
    for tier in tiers:
        tier.close()
