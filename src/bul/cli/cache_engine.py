"""Wiring of the cache engine: which slower tiers `[cache]` asks for, behind one core's blocks.

Refuses to start half: a folder that cannot be used raises, with a hint, before any request; and to
quantise what is not f16 KV.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from pathlib import Path

from bul.errors import ConfigError

if typing.TYPE_CHECKING:
    from collections.abc import Callable

    from bul.cache.contract import Tier
    from bul.cache.engine import UltraAdaptiveKVCacheEngine
    from bul.config import Settings
    from bul.inference.contract import ModelCore

    Watcher = Callable[[bytes, bool], None]

__all__ = ["cache_folder", "open_cache_engine"]


def cache_folder(settings: Settings) -> Path:
    """Where the disk tier lies: `persistence_dir`, else in the state folder."""
    named = settings.cache.persistence_dir
    return Path(named) if named else Path(settings.up.state_dir or ".bul") / "cache"


def open_cache_engine(
    settings: Settings, core: ModelCore, watcher: Watcher | None = None
) -> UltraAdaptiveKVCacheEngine:
    """The engine for `core`'s blocks, with its tiers open. Raises TierUnavailable, ConfigError.

    Call it before a runner is made: with quantised KV it changes `core.identity`, and so all keys.
    """
    from bul.cache.engine import UltraAdaptiveKVCacheEngine

    config = settings.cache
    tiers: list[Tier] = []
    if config.quantisation != "none":
        _name_quantisation(core, config.quantisation)
    if config.enable_persistence:
        from bul.cache.tiers.disk.tier import open_disk_tier

        config = dataclasses.replace(config, persistence_dir=str(cache_folder(settings)))
        tiers.append(_quantised(open_disk_tier(config, core.identity), core))
    if config.enable_distributed:
        from bul.cache.tiers.distributed import open_distributed_tier

        tiers.append(_quantised(open_distributed_tier(config, core.identity), core))
    if config.shared_url:
        from bul.cache.tiers.shared import open_shared_tier

        tiers.append(_quantised(open_shared_tier(config, core.identity), core))
    make: Callable[..., UltraAdaptiveKVCacheEngine] = UltraAdaptiveKVCacheEngine
    if settings.regions.name:
        from bul.cli.region_store import open_regions_tier
        from bul.regions.telling import TellingEngine

        regions = open_regions_tier(settings, core.identity.digest())
        tiers.append(_quantised(regions, core))
        make = functools.partial(TellingEngine, regions=regions)
    return make(
        config, identity=core.identity, tiers=tiers, block_bytes=core.block_bytes, watcher=watcher
    )


def _name_quantisation(core: ModelCore, quantisation: str) -> None:
    if core.identity.kv_dtype != "f16":
        raise ConfigError(
            f"quantisation of KV needs f16 KV, engine {core.engine_name} has "
            f"{core.identity.kv_dtype}",
            hint='set quantisation = "none" in [cache]',
        )
    identity = dataclasses.replace(core.identity, quantisation=quantisation)
    core.identity = identity  # type: ignore[misc]  # a plain attribute of both engines


def _quantised(tier: Tier, core: ModelCore) -> Tier:
    """`tier`, behind the codec that the core's identity names."""
    identity = core.identity
    if identity.quantisation == "none":
        return tier
    from bul.cache.tiers.quantised import Int8Codec, QuantisedTier

    groups = 2 * identity.layers
    row_bytes = core.block_bytes // (groups * core.block_tokens)
    return QuantisedTier(
        tier, Int8Codec(groups=groups, tokens=core.block_tokens, row_bytes=row_bytes)
    )
