"""The shared tier: blocks in Valkey or Redis, for several hosts. Open `tier.py` first."""

from bul.cache.tiers.shared.open import open_shared_tier
from bul.cache.tiers.shared.tier import SharedTier

__all__ = ["SharedTier", "open_shared_tier"]
