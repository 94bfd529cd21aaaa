"""The default policy; until it has learned anything it evicts as leaf-only LRU does.

It refuses to guess without data.
"""

from __future__ import annotations

from bul.cache.eviction.lru import Lru

__all__ = ["Adaptive"]


class Adaptive(Lru):
    """Learns which sessions go on."""

    name = "adaptive"
