"""MB/s of the distributed tier beside raw gloo and raw shared memory, on this machine.

    make bench-distributed                          under a minute; bench/out/distributed.json

Two ranks as processes of their own, blocks of the built-in model's size (1,474,560 bytes), batches
of 16 as the engine reads them; medians. Rows:

    raw_memory    one copy out of shared memory: the ceiling on one host
    raw_gloo      send and recv of the same bytes between two processes, nothing else
    tier_memory   `get` of the other rank's blocks through shared memory: asked, copied, verified
    tier_gloo     the same over gloo, as between hosts
    set_memory, set_gloo   `set` on the other rank: sent, verified, published

Everything runs in the same minute on the same cores. Exit code 1 if a block was wrong or missing.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from bul.cache.tiers.distributed.arena import Memory
from bul.cache.tiers.distributed.link import Links
from bul.cache.tiers.distributed.place import owner, seeds
from bul.cache.tiers.distributed.tier import DistributedTier, World
from bul.testing.rank_process import addresses_for
from bul.testing.tier_contract import chain_of_records

BLOCK_BYTES = 1_474_560
BATCH = 16
ROUNDS = 9
ARENA_BYTES = 1 << 30
IDENTITY = b"b" * 32
OUT = Path(__file__).parent / "out" / "distributed.json"
Address = tuple[str, int]


def timed(act: Callable[[], object]) -> float:
    """Median MB/s of a batch."""
    act()
    seconds = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - began_s)
    return round(BATCH * BLOCK_BYTES / statistics.median(seconds) / 1e6, 1)


def tier_of(rank: int, addresses: tuple[Address, ...], *, gloo: bool) -> DistributedTier:
    world = World(
        rank=rank, addresses=addresses, bytes_max=ARENA_BYTES, timeout_s=5.0, use_memory=not gloo
    )
    links = Links("gloo", "127.0.0.1", 5.0, rank) if gloo else None
    return DistributedTier(world, IDENTITY, links=links)


def other_rank(addresses: tuple[Address, ...], gloo: bool, told: Connection) -> None:
    """Keeps what the first one sets, until it is told to end."""
    tier = tier_of(1, addresses, gloo=gloo)
    told.send("ready")
    told.recv()
    tier.close()


def tier_row(*, gloo: bool) -> tuple[float, float, bool]:
    """(get, set) in MB/s, and whether all blocks were right."""
    addresses = tuple(addresses_for(2))
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=other_rank, args=(addresses, gloo, there))
    process.start()
    here.recv()
    tier = tier_of(0, addresses, gloo=gloo)
    rank_seeds = seeds([f"{host}:{port}" for host, port in addresses])
    records = [
        record
        for record in chain_of_records(6 * BATCH * (ROUNDS + 1), block_bytes=BLOCK_BYTES // 16384)
        if owner(record.key, rank_seeds) == 1
    ]
    payload = bytes(range(256)) * (BLOCK_BYTES // 256)
    big = [dataclasses.replace(record, payload=payload) for record in records]
    batches = [big[at : at + BATCH] for at in range(0, BATCH * (ROUNDS + 1), BATCH)]
    waiting = iter(batches)
    set_rate = timed(lambda: tier.set(next(waiting)))
    keys = [record.key for record in batches[-1]]
    get_rate = timed(lambda: tier.get(keys))
    right = all(block is not None and bytes(block) == payload for block in tier.get(keys))
    here.send("end")
    process.join(10)
    tier.close()
    return get_rate, set_rate, right


def raw_memory() -> float:
    memory, _ = Memory.make(BATCH * BLOCK_BYTES + 64)
    memory.view[64:] = bytes(range(256)) * (BATCH * BLOCK_BYTES // 256)
    rate = timed(lambda: [memory.copy(64 + i * BLOCK_BYTES, BLOCK_BYTES) for i in range(BATCH)])
    memory.close()
    return rate


def raw_sender(told: Connection) -> None:
    links = Links("gloo", "127.0.0.1", 5.0, 0)
    host, port, wait = links.offer()
    told.send((host, port))
    pair = wait()
    data = bytearray(BATCH * BLOCK_BYTES)
    for _ in range(ROUNDS + 1):
        told.recv()
        pair.send(data, to=1)


def raw_gloo() -> float:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=raw_sender, args=(there,))
    process.start()
    host, port = here.recv()
    pair = Links("gloo", "127.0.0.1", 5.0, 1).call(host, port)

    def once() -> None:
        here.send("go")
        pair.receive(BATCH * BLOCK_BYTES, sender=0)

    rate = timed(once)
    process.join(10)
    return rate


def main() -> int:
    multiprocessing.set_start_method("spawn")
    rows: dict[str, float] = {"raw_memory": raw_memory(), "raw_gloo": raw_gloo()}
    rows["tier_memory"], rows["set_memory"], memory_right = tier_row(gloo=False)
    rows["tier_gloo"], rows["set_gloo"], gloo_right = tier_row(gloo=True)
    print(f"{'':12} {'MB/s':>8}   of raw")
    for name, rate in rows.items():
        raw = rows["raw_gloo" if "gloo" in name else "raw_memory"]
        print(f"{name:12} {rate:8,.0f}   {rate / raw:.2f}")
    right = memory_right and gloo_right
    OUT.parent.mkdir(exist_ok=True)
    document = {"mb_per_s": rows, "blocks_right": right, "block_bytes": BLOCK_BYTES}
    OUT.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
