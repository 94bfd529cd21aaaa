"""What the cache adds to a first token when nothing is cached: every prompt is new to it.

Refuses to compare two runs of the model, which differ by more than the cache costs: the cache's
own calls are timed beside the computing in one run. RAM and an empty-handed disk tier are asked,
and every block is exported, kept and queued for the disk.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from bul.blocks.chain import block_keys, chain_root
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk import DiskTier
from bul.config import KVCacheConfig, ServeConfig
from bul.inference.embedded import EmbeddedCore
from bul.inference.model_file import ensure_model
from bul.testing.exactness import generate_greedy

__all__ = ["miss_rows"]

PROMPTS = 5
TOKENS = 330
Row = dict[str, Any]


def miss_rows(folder: Path) -> list[Row]:
    """Milliseconds of each part, median of the prompts, and the cache's share of all of it."""
    core = EmbeddedCore(ensure_model(print), ServeConfig(slots=1, context_tokens=1024, threads=1))
    disk = DiskTier(folder / "misses", core.identity, bytes_max=1 << 30)
    engine = UltraAdaptiveKVCacheEngine(
        KVCacheConfig(), identity=core.identity, tiers=[disk], block_bytes=core.block_bytes
    )
    parts = [_one(core, engine, seed) for seed in range(PROMPTS + 1)][
        1:
    ]  # the first one is warm-up
    engine.close()
    core.close()
    row: Row = {"bench": "misses", "tokens": TOKENS, "blocks": TOKENS // core.block_tokens}
    for name in parts[0]:
        row[f"{name}_ms"] = round(statistics.median(part[name] for part in parts) * 1000, 2)
    before = row["match_ms"]
    row["before_first_token_share"] = round(before / (before + row["compute_ms"]), 5)
    every = row["match_ms"] + row["export_ms"] + row["set_ms"]
    row["share"] = round(every / (every + row["compute_ms"]), 5)
    return [row]


def _one(core: EmbeddedCore, engine: UltraAdaptiveKVCacheEngine, seed: int) -> dict[str, float]:
    dice = random.Random(seed)
    words = " ".join(f"{dice.getrandbits(20):x}" for _ in range(TOKENS))
    tokens = core.tokenize(words, special=False)[:TOKENS]
    root = chain_root(core.identity.digest(), b"")
    marks = [time.perf_counter()]
    keys = block_keys(root, tokens, core.block_tokens)
    match, ready = engine.match_prefix(keys), threading.Event()
    match.when_settled(ready.set)
    ready.wait()
    assert not match.blocks
    marks.append(time.perf_counter())
    generate_greedy(core, 0, tokens, 1)
    marks.append(time.perf_counter())
    blocks = core.export_blocks(0, 0, len(keys))
    marks.append(time.perf_counter())
    engine.set_blocks(keys, 0, blocks)
    match.release()
    marks.append(time.perf_counter())
    engine.flush()
    names = ("match", "compute", "export", "set")
    return {name: end - start for name, start, end in zip(names, marks, marks[1:], strict=False)}
