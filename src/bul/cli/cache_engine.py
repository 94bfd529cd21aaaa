"""Wiring of the cache engine: which slower tiers `[cache]` asks for, behind one core's blocks.

Refuses to start half: a folder that cannot be used raises, with a hint, before any request.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

if typing.TYPE_CHECKING:
    from bul.cache.contract import Tier
    from bul.cache.engine import UltraAdaptiveKVCacheEngine
    from bul.config import Settings
    from bul.inference.contract import ModelCore

__all__ = ["open_cache_engine"]


def open_cache_engine(settings: Settings, core: ModelCore) -> UltraAdaptiveKVCacheEngine:
    """The engine for `core`'s blocks, with its tiers open. Raises TierUnavailable."""
    from bul.cache.engine import UltraAdaptiveKVCacheEngine

    config = settings.cache
    tiers: list[Tier] = []
    if config.enable_persistence:
        from bul.cache.tiers.disk.tier import open_disk_tier

        folder = config.persistence_dir or str(Path(settings.up.state_dir or ".bul") / "cache")
        config = dataclasses.replace(config, persistence_dir=folder)
        tiers.append(open_disk_tier(config, core.identity))
    return UltraAdaptiveKVCacheEngine(
        config, identity=core.identity, tiers=tiers, block_bytes=core.block_bytes
    )
