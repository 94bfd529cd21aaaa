"""What prefetching along a chain buys, and what a match costs among a million blocks."""

from __future__ import annotations

import array
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from bul.blocks.chain import block_keys, chain_root
from bul.cache.contract import BlockRecord
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk import DiskIO, DiskTier
from bul.config import KVCacheConfig
from bul.testing.disk_faults import SlowIO

__all__ = ["match_rows", "prefetch_rows"]

IDENTITY = b"b" * 32
ROOT = chain_root(IDENTITY, b"")
BLOCK_TOKENS = 64
PREFIX_BLOCKS = 32
BLOCK_BYTES = 370 << 10
ROUNDS = 7
DISKS = {
    "page cache": DiskIO,
    "slow disk (2 ms, 200 MB/s)": lambda: SlowIO(seek_s=0.002, bytes_per_s=200e6),
}
Row = dict[str, Any]


def chain_keys(number: int, blocks: int) -> list[bytes]:
    tokens = array.array("I", [number, *range(blocks * BLOCK_TOKENS - 1)])
    return block_keys(ROOT, tokens, BLOCK_TOKENS)


def prefetch_rows(folder: Path) -> list[Row]:
    """Time to the last of 32 blocks from a cold RAM tier, by `prefetch_size`."""
    keys = chain_keys(1, PREFIX_BLOCKS)
    payload = bytes(range(256)) * (BLOCK_BYTES // 256)
    tier = DiskTier(folder / "prefetch", IDENTITY, bytes_max=1 << 30, fsync="none")
    parents = [b"", *keys[:-1]]
    tier.set(
        [
            BlockRecord(key=key, parent=parent, tokens=BLOCK_TOKENS, payload=payload)
            for key, parent in zip(keys, parents, strict=True)
        ]
    )
    tier.close()
    rows = []
    for name, make_io in DISKS.items():
        for size in (0, 8, 16, 32):
            times = [load_once(folder, make_io(), keys, size) for _ in range(ROUNDS)]
            rows.append(
                {
                    "bench": "prefetch of a 32-block prefix (370 kB blocks)",
                    "disk": name,
                    "prefetch_size": size,
                    "last_block_ms_p50": round(statistics.median(times) * 1e3, 2),
                    "last_block_ms_max": round(max(times) * 1e3, 2),
                }
            )
    return rows


def load_once(folder: Path, io: DiskIO, keys: list[bytes], prefetch_size: int) -> float:
    """Seconds from `match_prefix` until settled, through the engine."""
    tier = DiskTier(folder / "prefetch", IDENTITY, bytes_max=1 << 30, fsync="none", io=io)
    config = KVCacheConfig(prefetch_size=prefetch_size, break_even=False, tier_deadline_s=30.0)
    engine = UltraAdaptiveKVCacheEngine(config, identity=IDENTITY, tiers=[tier])
    settled = threading.Event()
    started_s = time.perf_counter()
    match = engine.match_prefix(keys)
    match.when_settled(settled.set)
    settled.wait(60)
    took_s = time.perf_counter() - started_s
    loaded = len(match.blocks)
    match.release()
    engine.close()
    assert loaded == len(keys), loaded
    return took_s


def match_rows(resident: int) -> list[Row]:
    """A match of 2,048 tokens against `resident` blocks in RAM, hashing apart."""
    config = KVCacheConfig(max_tokens=(resident + 64) * BLOCK_TOKENS, ram_bytes_max=1 << 40)
    engine = UltraAdaptiveKVCacheEngine(config, identity=IDENTITY)
    chains = resident // PREFIX_BLOCKS
    payloads = [b"x" * 64] * PREFIX_BLOCKS
    for number in range(chains):
        engine.set_blocks(chain_keys(number, PREFIX_BLOCKS), 0, payloads)
    hashing, matching = [], []
    for number in range(0, chains, max(1, chains // 2000)):
        tokens = array.array("I", [number, *range(PREFIX_BLOCKS * BLOCK_TOKENS - 1)])
        started_s = time.perf_counter()
        keys = block_keys(ROOT, tokens, BLOCK_TOKENS)
        hashed_s = time.perf_counter()
        match = engine.match_prefix(keys)
        matched_s = time.perf_counter()
        assert len(match.blocks) == PREFIX_BLOCKS
        match.release()
        hashing.append(hashed_s - started_s)
        matching.append(matched_s - hashed_s)
    engine.close()
    return [
        {
            "bench": "match of 2,048 tokens",
            "resident_blocks": chains * PREFIX_BLOCKS,
            "part": part,
            "p50_us": round(statistics.median(times) * 1e6, 1),
            "p99_us": round(sorted(times)[len(times) * 99 // 100] * 1e6, 1),
        }
        for part, times in (
            ("hashing", hashing),
            ("match_prefix", matching),
            ("both", [a + b for a, b in zip(hashing, matching, strict=True)]),
        )
    ]
