"""What loading ahead buys after a restart, and what it costs the requests that come meanwhile.

Sessions of 24 blocks lie on the disk; a new engine opens the folder. `idle_s` later each session
asks once, the one used last first: the time of its match, and how much came from RAM. Then the
other way round: requests come without a pause from the first moment on, while the engine would like
to warm up, with and without it; the row `impolite` is the control that does not stop for them.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _cache_prefetch import BLOCK_BYTES, DISKS, IDENTITY, chain_keys

from bul.cache.ahead import Ahead
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk import DiskTier
from bul.config import KVCacheConfig

__all__ = ["ahead_rows"]

SESSIONS, BLOCKS = 12, 24
RAM_BYTES = 2 * SESSIONS * BLOCKS * BLOCK_BYTES
PAYLOAD = bytes(range(256)) * (BLOCK_BYTES // 256)
RATES = {"off": 0, "on": 256 << 20, "impolite": 1 << 40}
IDLE_S = 3.0
ROUNDS = 3
Row = dict[str, Any]


def opened(folder: Path, disk: str, ahead: str) -> UltraAdaptiveKVCacheEngine:
    tier = DiskTier(folder / "ahead", IDENTITY, bytes_max=4 << 30, fsync="none", io=DISKS[disk]())
    config = KVCacheConfig(
        max_tokens=1 << 24,
        ram_bytes_max=RAM_BYTES,
        prefetch_size=8,
        break_even=False,
        tier_deadline_s=30.0,
        prefetch_bytes_per_s_max=RATES[ahead],
    )
    return UltraAdaptiveKVCacheEngine(config, identity=IDENTITY, tiers=[tier])


def fill(folder: Path) -> list[list[bytes]]:
    engine = opened(folder, "page cache", "off")
    chains = [chain_keys(number, BLOCKS) for number in range(SESSIONS)]
    for keys in chains:
        engine.set_blocks(keys, 0, [PAYLOAD] * len(keys))
    engine.close()
    return chains


def take_s(engine: UltraAdaptiveKVCacheEngine, keys: Sequence[bytes]) -> float:
    settled = threading.Event()
    started_s = time.perf_counter()
    match = engine.match_prefix(keys)
    match.when_settled(settled.set)
    assert settled.wait(60)
    took_s = time.perf_counter() - started_s
    assert len(match.blocks) == len(keys)
    match.release()
    return took_s


def first_hits(folder: Path, chains: list[list[bytes]], disk: str, ahead: str) -> Row:
    """After a restart and IDLE_S of quiet."""
    engine = opened(folder, disk, ahead)
    time.sleep(IDLE_S)
    times = [take_s(engine, keys) for keys in reversed(chains)]
    stats = engine.stats()
    engine.close()
    asked = stats["engine"]["asked_tokens_total"]
    return {
        "bench": f"first request of each session, {IDLE_S:.0f} s after a restart",
        "disk": disk,
        "ahead": ahead,
        "first_ms": round(times[0] * 1e3, 2),
        "p50_ms": round(statistics.median(times) * 1e3, 2),
        "max_ms": round(max(times) * 1e3, 2),
        "from_ram": round(
            stats["engine"]["ahead_used_blocks_total"] * engine.config.block_tokens / asked, 2
        ),
        "loaded_ahead": int(stats["engine"]["ahead_blocks_total"]),
    }


def while_busy(folder: Path, chains: list[list[bytes]], disk: str, ahead: str) -> Row:
    """Requests without a pause from the start; RAM is emptied between rounds."""
    busy_s = Ahead.busy_s
    if ahead == "impolite":
        Ahead.busy_s = lambda _: 0.0  # type: ignore[method-assign]  # the control
    times: list[float] = []
    try:
        engine = opened(folder, disk, ahead)
        for _ in range(ROUNDS * 4):
            engine.clear_ram()
            times += [take_s(engine, keys) for keys in chains]
        stats = engine.stats()["engine"]
        engine.close()
    finally:
        Ahead.busy_s = busy_s  # type: ignore[method-assign]  # as it was
    times.sort()
    return {
        "bench": "requests without a pause after a restart",
        "disk": disk,
        "ahead": ahead,
        "p50_ms": round(statistics.median(times) * 1e3, 2),
        "p99_ms": round(times[len(times) * 99 // 100] * 1e3, 2),
        "loaded_ahead": int(stats["ahead_blocks_total"]),
    }


def ahead_rows(folder: Path) -> list[Row]:
    """Side by side: on and off after quiet; on, off and the control under requests."""
    chains = fill(folder)
    quiet = [first_hits(folder, chains, disk, how) for disk in DISKS for how in ("off", "on")]
    return quiet + [while_busy(folder, chains, disk, how) for disk in DISKS for how in RATES]
