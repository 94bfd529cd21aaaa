"""The distributed tier: blocks in the memory of other ranks. Open `tier.py` first."""

from bul.cache.tiers.distributed.open import open_distributed_tier
from bul.cache.tiers.distributed.tier import DistributedTier

__all__ = ["DistributedTier", "open_distributed_tier"]
