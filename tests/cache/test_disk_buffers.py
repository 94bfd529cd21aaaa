"""Memory of payloads that is used again: never while anybody can see it, never without a bound."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from bul.cache.tiers.disk import DiskTier
from bul.cache.tiers.disk.buffers import BufferPool
from bul.testing.tier_contract import chain_of_records, keys_of

SIZE = 64 << 10


def address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


def test_a_buffer_comes_back_when_its_last_view_is_gone() -> None:
    pool = BufferPool()
    first = pool.take(SIZE)
    place = address(first)
    part = np.frombuffer(first[100:200], np.uint8)
    del first
    assert address(pool.take(SIZE)) != place  # `part` still looks at it
    del part
    assert place in {address(view) for view in (pool.take(SIZE), pool.take(SIZE))}


def test_no_more_than_the_bound_is_kept() -> None:
    pool = BufferPool(bytes_max=4 * SIZE)
    held = [pool.take(SIZE) for _ in range(10)]
    del held
    assert [len(free) for free in pool._free.values()] == [2]


def test_the_third_size_pushes_out_the_first() -> None:
    pool = BufferPool()
    for size in (SIZE, 2 * SIZE, 3 * SIZE):
        pool.take(size)
    assert list(pool._free) == [2 * SIZE, 3 * SIZE]


@pytest.mark.parametrize("size", [0, 1, 100])
def test_small_ones_are_plain_memory(size: int) -> None:
    assert pool_sizes(size) == []


def pool_sizes(size: int) -> list[int]:
    pool = BufferPool()
    assert len(pool.take(size)) == size
    return list(pool._free)


def test_blocks_that_are_held_keep_their_bytes_while_others_are_read(tmp_path: Path) -> None:
    """Three threads read and drop; what is held, whole or in part, never changes."""
    tier = DiskTier(tmp_path, b"i" * 32, bytes_max=64 << 20, fsync="none")
    records = chain_of_records(24, block_bytes=SIZE)
    assert tier.set(records) == 24
    keys = keys_of(records)
    held = tier.get(keys)[::5]
    wrong: list[bytes] = []

    def reader() -> None:
        for _ in range(20):
            found = tier.get(keys)
            kept = [block[-64:] if isinstance(block, memoryview) else b"" for block in found]
            del found
            wrong.extend(
                key
                for key, end, r in zip(keys, kept, records, strict=True)
                if end != r.payload[-64:]
            )

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert wrong == []
    assert held == [record.payload for record in records[::5]]
    tier.close()
