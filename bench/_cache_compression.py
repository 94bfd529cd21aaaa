"""Does compression pay for KV? Real blocks, as f16 and as int8, each with every setting.

`smallest` is the share of the bytes that the compressor left, `stored` the share that the tier
keeps: a block that shrinks by less than a 16th stays raw. `pays_below_mb_per_s` is the disk speed
at which reading fewer bytes saves the time that decoding takes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lz4.block
import zstandard

from bul.cache.contract import BlockRecord
from bul.cache.tiers.disk import DiskTier
from bul.cache.tiers.disk.codec import decode, encode
from bul.cache.tiers.quantised import Int8Codec
from bul.config import ServeConfig
from bul.inference.embedded import EmbeddedCore
from bul.inference.model_file import ensure_model
from bul.testing.exactness import prompt_pairs

BLOCKS = 8
ROUNDS = 5
SHRINK: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "lz4": lambda block: lz4.block.compress(block, store_size=False),
    "zstd": lambda block: zstandard.ZstdCompressor(level=1).compress(block),
}
Row = dict[str, Any]


def real_blocks() -> dict[str, list[bytes]]:
    """KV of the built-in model over prose, as the engine exports it, and rounded to int8."""
    core = EmbeddedCore(ensure_model(print), ServeConfig(slots=2, context_tokens=1024))
    tokens_wanted = BLOCKS * core.block_tokens
    try:
        [pair] = prompt_pairs(
            core, seed=1, count=1, tokens_min=tokens_wanted, tokens_max=tokens_wanted
        )
        tokens = list(pair.first)[:tokens_wanted]
        for at in range(0, tokens_wanted, core.block_tokens):
            core.prefill(0, tokens[at : at + core.block_tokens], at)
        exact = [bytes(block) for block in core.export_blocks(0, 0, BLOCKS)]
        identity = core.identity
        codec = Int8Codec(
            groups=2 * identity.layers, tokens=core.block_tokens, row_bytes=identity.row_bytes
        )
    finally:
        core.close()
    return {"f16": exact, "int8": [codec.encode(block) for block in exact]}


def best_ms(call: Callable[[], object], blocks: int) -> float:
    """The fastest of some rounds, for one block."""
    best_s = float("inf")
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        call()
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s / blocks * 1e3


def disk_ms(blocks: Sequence[bytes], compression: str, folder: Path) -> tuple[float, float]:
    """Set and get of one block through the disk tier, page cache warm."""
    place = Path(tempfile.mkdtemp(dir=folder))
    tier = DiskTier(place, bytes(32), bytes_max=1 << 30, fsync="none", compression=compression)
    try:
        batches = [
            [BlockRecord(key=os.urandom(32), parent=b"", tokens=64, payload=b) for b in blocks]
            for _ in range(ROUNDS)
        ]
        unset = iter(batches)
        set_ms = best_ms(lambda: tier.set(next(unset)), len(blocks))
        get_ms = best_ms(lambda: tier.get([record.key for record in batches[0]]), len(blocks))
        found = tier.get([record.key for record in batches[-1]])
        assert [bytes(block or b"") for block in found] == list(blocks)
    finally:
        tier.close()
        shutil.rmtree(place)
    return set_ms, get_ms


def compression_rows(folder: Path) -> list[Row]:
    """A row for each kind of block and each setting."""
    return [
        compression_row(kind, blocks, compression, folder)
        for kind, blocks in real_blocks().items()
        for compression in SHRINK
    ]


def compression_row(kind: str, blocks: Sequence[bytes], compression: str, folder: Path) -> Row:
    whole = sum(map(len, blocks))
    packed = [encode(block, compression) for block in blocks]
    stored = sum(len(payload) for _, payload in packed)
    size = len(blocks[0])
    decode_ms = best_ms(lambda: [decode(n, payload, size) for n, payload in packed], len(blocks))
    set_ms, get_ms = disk_ms(blocks, compression, folder)
    saved_mb = (whole - stored) / len(blocks) / 1e6
    return {
        "bench": "compression",
        "kv": kind,
        "compression": compression,
        "block_bytes": size,
        "smallest": round(sum(len(SHRINK[compression](block)) for block in blocks) / whole, 3),
        "stored": round(stored / whole, 3),
        "encode_ms": round(
            best_ms(lambda: [encode(block, compression) for block in blocks], len(blocks)), 3
        ),
        "decode_ms": round(decode_ms, 3),
        "disk_set_ms": round(set_ms, 3),
        "disk_get_ms": round(get_ms, 3),
        "pays_below_mb_per_s": round(saved_mb / decode_ms * 1e3) if saved_mb else 0,
    }
