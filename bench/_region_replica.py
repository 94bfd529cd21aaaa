"""A replica's cache without its model: writes blocks to its region's disk and tells the agent."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from bul.cache.contract import BlockRecord
from bul.cache.tiers.disk.tier import open_disk_tier
from bul.config import KVCacheConfig
from bul.regions.auth import Seal
from bul.regions.tier import RegionsTier

BLOCK_BYTES = 65_536
IDENTITY = blake2b(b"bench", digest_size=32).digest()


def key_of(number: int) -> bytes:
    return blake2b(b"bench block %d" % number, digest_size=32).digest()


def payload_of(number: int) -> bytes:
    """As noisy as KV: nothing to compress."""
    return random.Random(number).randbytes(BLOCK_BYTES)


@dataclasses.dataclass
class BenchReplica:
    """Of one region. Blocks are known by number."""

    folder: Path
    region: str
    agent_url: str
    secret: str

    def __post_init__(self) -> None:
        config = KVCacheConfig(
            enable_persistence=True,
            persistence_dir=str(self.folder / "cache"),
            disk_bytes_max=2 << 30,
        )
        self.disk = open_disk_tier(config, IDENTITY)
        self.tier = RegionsTier(Seal(self.secret, self.region), self.agent_url, IDENTITY)

    def write(self, numbers: Sequence[int]) -> None:
        """To the disk, then told; as an engine's lanes do."""
        records = [
            BlockRecord(key=key_of(n), parent=b"", tokens=64, payload=payload_of(n))
            for n in numbers
        ]
        self.disk.set(records)
        self.tier.set(records)

    def has(self, number: int) -> bool:
        return self.disk.match([key_of(number)]) == 1

    def missing(self, numbers: Sequence[int]) -> list[int]:
        return [number for number in numbers if not self.has(number)]

    def wrong(self, numbers: Sequence[int]) -> int:
        """How many of those that are here have other bytes than they should."""
        found = 0
        for number in numbers:
            [payload] = self.disk.get([key_of(number)])
            found += payload is not None and bytes(payload) != payload_of(number)
        return found

    def miss_s(self, number: int) -> float:
        """Seconds that a prompt pays for asking after a block that nobody has."""
        started_s = time.perf_counter()
        if self.tier.match([key_of(number)]):
            self.tier.get([key_of(number)])
        return time.perf_counter() - started_s

    def close(self) -> None:
        self.tier.close()
        self.disk.close()
