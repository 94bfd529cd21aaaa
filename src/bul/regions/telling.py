"""A replica's engine that also tells its region's agent which prefixes are asked for.

Refuses to do anything else: the hits decide what a new region is warmed with first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bul.blocks.prefix import RequestFacts
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.regions.tier import RegionsTier

__all__ = ["TellingEngine"]


class TellingEngine(UltraAdaptiveKVCacheEngine):
    """regions: the last of its tiers. A purge elsewhere empties its RAM."""

    def __init__(self, *args: Any, regions: RegionsTier, **options: Any) -> None:
        super().__init__(*args, **options)
        self._regions = regions
        regions.on_purge = self.clear_ram

    def finish(
        self, path: Sequence[bytes], output_tokens: int, facts: RequestFacts = RequestFacts()
    ) -> None:
        """As the engine's own."""
        super().finish(path, output_tokens, facts)
        self._regions.touch(path)
