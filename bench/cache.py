"""Tiers side by side on this machine: set and get of blocks of 64 kB, 370 kB and 3 MB.

    make bench-cache                        a few minutes; table, and bench/out/cache.json
    .venv/bin/python bench/cache.py --quick     a smoke run, seconds
    .venv/bin/python bench/cache.py --large     10 M blocks: clean open, rebuild, RAM; 6 GB of disk

All stores get the same random blocks, in batches of 32 (one prefix), held until the next batch,
without fsync (rows `fsync = always` say so). `raw file` is one preallocated file with pwrite/pread:
the fastest that a file can be; `raw file, kept memory` reads into the same memory again and again,
as BUL's disk tier does as far as its blocks come free. `raw files` is a file for each block.
Checksums are timed apart:
`checksum_us` is xxh3-128 of one block, `vs_raw` the throughput over raw file's, and
`vs_raw_without_checksum` the same with that time taken out. The page cache is warm: a cold read
adds the same device time to everyone. CPU is user + system of this process (and of the server's).

Optional: `pip install -e .[bench]` for diskcache, lmdb and redis-py. LMCache wants a virtual
environment of its own, since its dependencies name CUDA builds and older NumPy; CPU-only:
    python3.11 -m venv lm && lm/bin/pip install --no-deps lmcache==0.5.6
    lm/bin/pip install torch numba psutil safetensors msgspec aiofiles aiofile blake3 py-cpuinfo \
        'prometheus_client<0.25' aiohttp pyzmq nvtx transformers cryptography pyyaml requests \
        cachetools sortedcontainers fastapi uvicorn httptools redis opentelemetry-api \
        opentelemetry-sdk xxhash lz4 zstandard diskcache lmdb rich prometheus-client
    PYTHONPATH=src lm/bin/python bench/cache.py --only tiers
A store that is not there is a row that says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _cache_ahead import ahead_rows
from _cache_compression import compression_rows
from _cache_large import large_rows
from _cache_misses import miss_rows
from _cache_prefetch import match_rows, prefetch_rows
from _cache_resident import SIZES as SIZES_RESIDENT
from _cache_resident import resident_rows
from _cache_return import return_rows
from _cache_stores import STORES, Store
from xxhash import xxh3_128_digest

SIZES = {"64 kB": 64 << 10, "370 kB": 370 << 10, "3 MB": 3 << 20}
BATCH = 32
PARTS = ["tiers", "prefetch", "compression", "return", "ahead", "misses", "match", "resident"]
TOTAL_BYTES = 256 << 20
ALWAYS_TOTAL_BYTES = 24 << 20
Row = dict[str, Any]


def cpu_s(server_pid: int | None) -> float:
    """User + system seconds of this process, and of the server if there is one."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = used.ru_utime + used.ru_stime
    if server_pid is not None:
        fields = Path(f"/proc/{server_pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def timed(
    batches: Sequence[Any], size: int, call: Callable[[Any], object], server_pid: int | None
) -> Row:
    """Throughput, p50 and p99 of a block (a batch's time over its blocks), CPU per GB."""
    gc.collect()
    times, blocks, held = [], 0, None
    cpu_started_s = cpu_s(server_pid)
    for batch in batches:
        started_s = time.perf_counter()
        held = call(batch)
        times.append((time.perf_counter() - started_s) / len(batch))
        blocks += len(batch)
    del held
    cpu_used_s = cpu_s(server_pid) - cpu_started_s
    seconds = sum(t * len(batch) for t, batch in zip(times, batches, strict=True))
    times.sort()
    gigabytes = blocks * size / 1e9
    return {
        "gb_per_s": round(gigabytes / seconds, 3),
        "p50_us": round(times[len(times) // 2] * 1e6, 1),
        "p99_us": round(times[min(len(times) - 1, len(times) * 99 // 100)] * 1e6, 1),
        "cpu_s_per_gb": round(cpu_used_s / gigabytes, 3),
        "block_us": seconds / blocks * 1e6,
    }


def checksum_us(blocks: Sequence[bytes]) -> float:
    """xxh3-128 of one block, just written and so as warm as after a read."""
    best = float("inf")
    for _ in range(3):
        started_s = time.perf_counter()
        for block in blocks:
            xxh3_128_digest(block)
        best = min(best, time.perf_counter() - started_s)
    return best / len(blocks) * 1e6


@contextmanager
def opened(make: Callable[..., Store], folder: Path, *, always: bool) -> Iterator[Store]:
    place = Path(tempfile.mkdtemp(dir=folder))
    store = make(place, always=always)
    try:
        yield store
    finally:
        store.close()
        shutil.rmtree(place, ignore_errors=True)


def measure(
    name: str, label: str, blocks: Sequence[bytes], folder: Path, rounds: int, *, always: bool
) -> list[Row]:
    """Rows for set and get of one store, the best of `rounds` fresh stores each; or why not."""
    head = {
        "bench": "tiers",
        "store": name,
        "block": label,
        "fsync": "always" if always else "none",
    }
    best: dict[str, Row] = {}
    try:
        for _ in range(rounds):
            with opened(STORES[name], folder, always=always) as store:
                for op, row in one_round(store, blocks, get=not always):
                    if op not in best or row["gb_per_s"] > best[op]["gb_per_s"]:
                        best[op] = row
    except (ImportError, FileNotFoundError) as missing:
        return [{**head, "op": "-", "not_run": f"{type(missing).__name__}: {missing}"}]
    return [{**head, "op": op, **row} for op, row in best.items()]


def one_round(store: Store, blocks: Sequence[bytes], *, get: bool) -> Iterator[tuple[str, Row]]:
    """Set everything, then get everything three times; checks what came back."""
    size = len(blocks[0])
    keys = [os.urandom(32) for _ in blocks]
    pairs = list(zip(keys, blocks, strict=True))
    set_batches = [pairs[at : at + BATCH] for at in range(0, len(pairs), BATCH)]
    yield "set", timed(set_batches, size, store.set, store.server_pid)
    if get:
        get_batches = [keys[at : at + BATCH] for at in range(0, len(keys), BATCH)]
        for _ in range(3):
            yield "get", timed(get_batches, size, store.get, store.server_pid)
        assert bytes(store.get(keys[:1])[0]) == blocks[0]


def compare(rows: list[Row], sums_us: dict[str, float]) -> None:
    """Add each row's share of raw file I/O at the same size, operation and policy."""
    raw = {
        (row["block"], row["op"], row["fsync"]): row["block_us"]
        for row in rows
        if row["store"] == "raw file"
    }
    for row in rows:
        base = raw.get((row["block"], row["op"], row["fsync"]))
        if base is None or "block_us" not in row:
            continue
        took_us = row.pop("block_us")
        row["vs_raw"] = round(base / took_us, 3)
        if row["store"].startswith("bul disk"):
            row["checksum_us"] = round(sums_us[row["block"]], 2)
            without_us = max(1e-9, took_us - row["checksum_us"])
            row["vs_raw_without_checksum"] = round(base / without_us, 3)


def tier_rows(total_bytes: int, folder: Path, rounds: int, stores: Sequence[str]) -> list[Row]:
    """Every store at every size; also set under fsync "always" for those that can."""
    rows: list[Row] = []
    sums_us: dict[str, float] = {}
    for label, size in SIZES.items():
        count = max(BATCH, total_bytes // size)
        blocks = [os.urandom(size) for _ in range(count)]
        sums_us[label] = checksum_us(blocks[:BATCH])
        for name in stores:
            rows += measure(name, label, blocks, folder, rounds, always=False)
        few = blocks[: max(2, ALWAYS_TOTAL_BYTES // size)]
        for name in {"raw file", "raw files", "bul disk", "lmdb"}.intersection(stores):
            rows += measure(name, label, few, folder, rounds, always=True)
    compare(rows, sums_us)
    return rows


def show(rows: Sequence[Row]) -> None:
    """A plain table for each bench, on stdout."""
    for bench in dict.fromkeys(row["bench"] for row in rows):
        mine = [row for row in rows if row["bench"] == bench]
        columns = list(dict.fromkeys(key for row in mine for key in row if key != "bench"))
        table = [columns, *[[str(row.get(column, "")) for column in columns] for row in mine]]
        widths = [max(len(line[at]) for line in table) for at in range(len(columns))]
        print(f"\n{bench}")
        for line in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def machine() -> Row:
    """Where the figures were taken."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    kernel = subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True)
    return {"cpu": model, "cores": os.cpu_count(), "kernel": kernel.stdout.strip()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="an eighth of the data")
    parser.add_argument("--large", action="store_true", help="the 10 M-block run instead")
    parser.add_argument("--blocks", type=int, default=10_000_000, help="of the --large run")
    parser.add_argument("--only", choices=PARTS, default=None)
    parser.add_argument("--stores", default="", help="of the tiers: 'raw file,bul disk'; all")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: TMPDIR")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bul-bench-", dir=given.folder))
    rows: list[Row] = []
    try:
        if given.large:
            rows += large_rows(folder, given.blocks)
        else:
            total_bytes = TOTAL_BYTES // 8 if given.quick else TOTAL_BYTES
            if given.only in (None, "tiers"):
                stores = given.stores.split(",") if given.stores else list(STORES)
                rows += tier_rows(total_bytes, folder, 2 if given.quick else 3, stores)
            if given.only in (None, "prefetch"):
                rows += prefetch_rows(folder)
            if given.only in (None, "compression"):
                rows += compression_rows(folder)
            if given.only in (None, "return"):
                rows += return_rows(folder)
            if given.only in (None, "ahead"):
                rows += ahead_rows(folder)
            if given.only in (None, "misses"):
                rows += miss_rows(folder)
            if given.only in (None, "match"):
                rows += match_rows(100_000 if given.quick else 1_000_000)
            if given.only in (None, "resident"):
                rows += resident_rows((20_000,) if given.quick else SIZES_RESIDENT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    out = Path(__file__).parent / "out" / ("cache_large.json" if given.large else "cache.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
