"""Would loading a session's blocks ahead of its return pay? Bounded from above by an oracle.

Sessions take turns after pauses; RAM holds half of them, the disk all. Before each turn, while the
lanes are idle, the oracle, who knows whose turn is next, may load that session's missing blocks:
`nothing`, `free room` only (it evicts nothing), or `anything` (it may evict). What a predictor
could gain lies between nothing and the oracle. The time is that of the match, from the disk with
the page cache warm and from a slow one; everything of a real first token comes on top of it.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _cache_prefetch import BLOCK_BYTES, BLOCK_TOKENS, DISKS, IDENTITY, chain_keys

from bul.blocks.prefix import RequestFacts
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk import DiskTier
from bul.config import KVCacheConfig

SESSIONS = 16
FIRST_BLOCKS, LAST_BLOCKS = 8, 24
TURNS = 150
RAM_BYTES = SESSIONS * LAST_BLOCKS * BLOCK_BYTES // 2
PAYLOAD = bytes(range(256)) * (BLOCK_BYTES // 256)
AHEAD = RequestFacts(priority="prefetch")
Row = dict[str, Any]


def take(
    engine: UltraAdaptiveKVCacheEngine, keys: Sequence[bytes], facts: RequestFacts
) -> tuple[float, int]:
    """Seconds until the match of `keys` is settled, and its blocks."""
    settled = threading.Event()
    started_s = time.perf_counter()
    match = engine.match_prefix(keys, facts)
    match.when_settled(settled.set)
    assert settled.wait(60)
    took_s = time.perf_counter() - started_s
    found = len(match.blocks)
    match.release()
    return took_s, found


def room_blocks(engine: UltraAdaptiveKVCacheEngine) -> int:
    """Blocks that RAM would take without evicting one."""
    ram = engine.stats()["ram"]
    by_bytes = (RAM_BYTES - ram["bytes"]) // BLOCK_BYTES
    return int(max(0, min(by_bytes, ram["capacity_blocks"] - ram["blocks"])))


def look_ahead(engine: UltraAdaptiveKVCacheEngine, keys: Sequence[bytes], oracle: str) -> int:
    """Load what the next turn asks for, as far as the oracle may; how many blocks had room."""
    engine.flush()
    room = room_blocks(engine)
    here = sum(engine.presence(keys)["ram"])
    wanted = {"nothing": 0, "free room": min(here + room, len(keys)), "anything": len(keys)}[oracle]
    if wanted > here:
        take(engine, keys[:wanted], AHEAD)
    return room


def return_row(folder: Path, disk: str, oracle: str) -> Row:
    tier = DiskTier(
        folder / f"return {disk} {oracle}"[:40].replace(" ", "-").replace(",", "").replace("/", ""),
        IDENTITY,
        bytes_max=1 << 30,
        fsync="none",
        io=DISKS[disk](),
    )
    config = KVCacheConfig(
        ram_bytes_max=RAM_BYTES, prefetch_size=8, break_even=False, tier_deadline_s=30.0
    )
    engine = UltraAdaptiveKVCacheEngine(config, identity=IDENTITY, tiers=[tier])
    chains = [chain_keys(number, LAST_BLOCKS) for number in range(SESSIONS)]
    blocks = [FIRST_BLOCKS] * SESSIONS
    dice = random.Random(7)
    times_s, rooms = [], []
    asked = from_ram = 0
    for turn in range(TURNS + SESSIONS):
        session = turn if turn < SESSIONS else dice.randrange(SESSIONS)
        known = chains[session][: blocks[session]]
        if turn >= SESSIONS:
            rooms.append(look_ahead(engine, known, oracle))
            from_ram += sum(engine.presence(known)["ram"])
            asked += len(known)
            times_s.append(take(engine, known, RequestFacts(session=str(session)))[0])
            blocks[session] = min(LAST_BLOCKS, blocks[session] + 1)
        path = chains[session][: blocks[session]]
        start = 0 if turn < SESSIONS else len(known)
        engine.set_blocks(path, start, [PAYLOAD] * (len(path) - start))
        engine.finish(path, BLOCK_TOKENS)
    engine.close()
    warm = rooms[TURNS // 2 :]
    return {
        "bench": "return of sessions, RAM for half of them",
        "disk": disk,
        "oracle loads into": oracle,
        "share_from_ram": round(from_ram / asked, 3),
        "match_ms_mean": round(statistics.mean(times_s) * 1e3, 2),
        "match_ms_p99": round(sorted(times_s)[TURNS * 99 // 100] * 1e3, 2),
        "free_blocks_idle_mean": round(statistics.mean(warm), 1),
    }


def return_rows(folder: Path) -> list[Row]:
    """A row for each disk and oracle."""
    return [
        return_row(folder, disk, oracle)
        for disk in DISKS
        for oracle in ("nothing", "free room", "anything")
    ]
