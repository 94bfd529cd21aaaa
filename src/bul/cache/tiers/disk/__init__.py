"""The disk tier, shared by the replicas of a host. Open `tier.py` first."""

from bul.cache.tiers.disk.io import DiskIO
from bul.cache.tiers.disk.tier import DiskTier, open_disk_tier

__all__ = ["DiskIO", "DiskTier", "open_disk_tier"]
