"""A disk cache's folder as a replica on the timed engine leaves it, for tests that look into it.

Refuses to be read back: what was written is returned beside it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bul.blocks.chain import block_keys, chain_root
from bul.blocks.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk.tier import open_disk_tier
from bul.config import KVCacheConfig, ServeConfig, TimedConfig
from bul.inference.timed import TimedCore
from bul.service.auth import tenant_salt

__all__ = ["CacheFolder", "flip_a_byte", "write_cache_folder"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CacheFolder:
    """keys: of all full blocks of the prompt. stored: how many of them lie there, root first."""

    path: Path
    keys: tuple[bytes, ...]
    stored: int

    @property
    def segment(self) -> Path:
        """The one segment."""
        (found,) = self.path.glob("*/*.seg")
        return found


def write_cache_folder(path: Path, prompt: str, *, left_out: int = 0) -> CacheFolder:
    """Store the full blocks of `prompt`, but the last `left_out`, without a tenant."""
    core = TimedCore(ServeConfig(engine="timed"), TimedConfig())
    config = KVCacheConfig(enable_persistence=True, persistence_dir=str(path))
    tier = open_disk_tier(config, core.identity)
    engine = UltraAdaptiveKVCacheEngine(
        config, identity=core.identity, tiers=[tier], block_bytes=core.block_bytes
    )
    root = chain_root(core.identity.digest(), tenant_salt("", ""))
    keys = block_keys(root, core.tokenize(prompt, special=False), core.block_tokens)
    stored = keys[: len(keys) - left_out]
    engine.set_blocks(stored, 0, [bytes(core.block_bytes)] * len(stored))
    assert engine.close()
    core.close()
    return CacheFolder(path=path, keys=tuple(keys), stored=len(stored))


def flip_a_byte(segment: Path) -> None:
    """Damage the payload of the segment's first record."""
    data = bytearray(segment.read_bytes())
    data[SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + 10] ^= 0x40
    segment.write_bytes(data)
