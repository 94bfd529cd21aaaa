"""Ten million small blocks: how long the folder takes to open, clean and after a crash.

Opens run in processes of their own, so that their peak memory is theirs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bul.cache.contract import BlockRecord
from bul.cache.tiers.disk import DiskTier
from bul.cache.tiers.disk.folder import namespace_name

__all__ = ["large_rows"]

IDENTITY = b"b" * 32
PAYLOAD = b"p" * 64
BATCH = 2000
BYTES_MAX = 1 << 40
Row = dict[str, Any]


def fill(folder: Path, blocks: int) -> float:
    """Seconds to set `blocks` blocks of 64 bytes with random keys."""
    tier = DiskTier(folder, IDENTITY, bytes_max=BYTES_MAX, fsync="none")
    started_s = time.perf_counter()
    for _ in range(0, blocks, BATCH):
        noise = os.urandom(32 * BATCH)
        keys = [noise[at : at + 32] for at in range(0, len(noise), 32)]
        stored = tier.set(
            [BlockRecord(key=key, parent=b"", tokens=64, payload=PAYLOAD) for key in keys]
        )
        assert stored == BATCH
    tier.close()
    return time.perf_counter() - started_s


def rss_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes() -> int:
    """Of this program: ru_maxrss would begin with the size of the parent that forked it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def open_once(folder: Path) -> None:
    """In a process of its own: open, count, look some keys up; one JSON line."""
    before = rss_bytes()
    started_s = time.perf_counter()
    tier = DiskTier(folder, IDENTITY, bytes_max=BYTES_MAX, fsync="none")
    opened_s = time.perf_counter() - started_s
    peak = peak_rss_bytes()
    after = rss_bytes()
    stats = tier.stats()
    noise = os.urandom(32 * 10_000)
    started_s = time.perf_counter()
    for at in range(0, len(noise), 32):
        tier.match([noise[at : at + 32]])
    lookup_us = (time.perf_counter() - started_s) / 10_000 * 1e6
    tier.close()
    blocks = max(1, int(stats["blocks"]))
    row = {
        "blocks": blocks,
        "open_s": round(opened_s, 2),
        "rss_bytes_per_block": round((after - before) / blocks, 1),
        "peak_rss_bytes_per_block": round((peak - before) / blocks, 1),
        "index_bytes_per_block": round(stats["index_bytes"] / blocks, 1),
        "missing_lookup_us": round(lookup_us, 1),
    }
    sys.stdout.write(json.dumps(row) + "\n")


def large_rows(folder: Path, blocks: int) -> list[Row]:
    """Fill, then open clean, and after a crash (the mark of a clean end taken away)."""
    place = folder / "large"
    fill_s = fill(place, blocks)
    rows: list[Row] = []
    for how in ("clean", "after a crash"):
        if how != "clean":
            (place / namespace_name(IDENTITY) / "clean").unlink()
        done = subprocess.run(
            [sys.executable, __file__, str(place)], check=True, capture_output=True, text=True
        )
        row = json.loads(done.stdout)
        rows.append({"bench": "large folder", "open": how, **row, "fill_s": round(fill_s, 1)})
    return rows


if __name__ == "__main__":
    open_once(Path(sys.argv[1]))
