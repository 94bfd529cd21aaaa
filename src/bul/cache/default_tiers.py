"""The slower tiers that a config asks for, for who makes an engine with nothing but a config.

It refuses to start half: a folder that cannot be used raises TierUnavailable with a hint. The
command line passes its tiers itself.
"""

from __future__ import annotations

import dataclasses

from bul.blocks.identity import Identity
from bul.cache.contract import Tier
from bul.clock import Clock
from bul.config import KVCacheConfig

__all__ = ["FOLDER_DEFAULT", "default_tiers"]

FOLDER_DEFAULT = ".bul/cache"
"""In the working directory, where `bul up` keeps its state too."""

NO_IDENTITY = bytes(32)
"""The namespace of an engine that was told no model: general values alone."""


def default_tiers(
    config: KVCacheConfig, identity: Identity | bytes | None, clock: Clock
) -> tuple[Tier, ...]:
    """Those of `enable_persistence`, `enable_distributed` and `shared_url`, in this order."""
    tiers: list[Tier] = []
    identity = identity or NO_IDENTITY
    if config.enable_persistence:
        from bul.cache.tiers.disk.tier import open_disk_tier  # noqa: PLC0415 - only if wanted

        folder = config.persistence_dir or FOLDER_DEFAULT
        named = dataclasses.replace(config, persistence_dir=folder)
        tiers.append(open_disk_tier(named, identity, clock=clock))
    if config.enable_distributed:
        from bul.cache.tiers.distributed import (  # noqa: PLC0415 - it may load torch
            open_distributed_tier,
        )

        tiers.append(open_distributed_tier(config, identity, clock=clock))
    if config.shared_url:
        from bul.cache.tiers.shared import open_shared_tier  # noqa: PLC0415 - redis only if wanted

        tiers.append(open_shared_tier(config, identity, clock=clock))
    return tuple(tiers)
