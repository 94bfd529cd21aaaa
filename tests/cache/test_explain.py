"""Explanations: the block that broke the chain, the field that differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bul.blocks.identity import Identity
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.explain import OtherIdentity, difference, explain
from bul.cache.tiers.disk.identities import stored_identities
from bul.cache.tiers.disk.tier import DiskTier
from bul.config import KVCacheConfig
from bul.testing.engines import BLOCK_TOKENS, chain, store
from bul.testing.tiers import MemoryTier

IDENTITY = Identity(
    weights="aa",
    tokenizer="bb",
    adapter="",
    kv_dtype="f16",
    layout="plain",
    layers=2,
    row_bytes=8,
    block_tokens=BLOCK_TOKENS,
    rope="",
    engine="e1",
    instruction_set="avx2",
    prefill_call_tokens=64,
    flash_attention="off",
)
T, F = True, False


@pytest.mark.parametrize(
    ("tokens", "ram", "disk", "cached", "broken_at", "words"),
    [
        (3, [], [], 0, None, "less than one block of 4"),
        (8, [F, F], [F, F], 0, 0, "never stored, or evicted"),
        (8, [T, F], [F, T], 2, None, "all 2 full blocks are cached; 0 tokens"),
        (9, [T, T], [F, F], 2, None, "1 tokens behind them"),
        (12, [T, F, F], [T, F, T], 1, 1, "block 1 of 3, tokens [4, 8), is in no tier"),
    ],
)
def test_the_main_reason(
    tokens: int, ram: list[bool], disk: list[bool], cached: int, broken_at: int | None, words: str
) -> None:
    result = explain({"ram": ram, "disk": disk}, tokens=tokens, block_tokens=4)
    assert (result.cached, result.broken_at) == (cached, broken_at)
    assert words in result.reasons[0]


def test_an_orphaned_tail_is_told() -> None:
    result = explain({"ram": [T, F, T, T]}, tokens=16, block_tokens=4)
    assert "2 later blocks" in result.reasons[1]
    assert result.tiers == {"ram": 1}


def test_the_fields_that_differ_are_named() -> None:
    ours = dataclasses.asdict(IDENTITY)
    theirs = {**ours, "weights": "cc", "digest": "whatever", "new_field": 1}
    assert difference(ours, theirs) == (("weights", "aa", "cc"),)
    result = explain(
        {"ram": [F]},
        tokens=4,
        block_tokens=4,
        identity=ours,
        others=[OtherIdentity(fields=theirs, blocks=1), OtherIdentity(fields=ours)],
    )
    assert result.reasons[1:] == (
        "1 blocks of this prompt are stored under another identity: weights is 'aa', there 'cc'",
    )


def test_the_engine_says_what_lies_where() -> None:
    tier = MemoryTier()
    config = KVCacheConfig(eviction="lru", block_tokens=BLOCK_TOKENS, max_tokens=2 * BLOCK_TOKENS)
    engine = UltraAdaptiveKVCacheEngine(config, tiers=[tier])
    store(engine, chain(3))
    assert engine.flush()
    assert engine.presence(chain(4)) == {"ram": [T, T, F, F], "memory": [T, T, T, F]}
    engine.close()


def test_the_identities_of_a_folder_are_read_and_damage_is_left_out(tmp_path: Path) -> None:
    other = dataclasses.replace(IDENTITY, weights="cc")
    for identity in (IDENTITY, other):
        DiskTier(tmp_path, identity, bytes_max=1 << 24).close()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "identity.json").write_text("{")
    found = stored_identities(tmp_path)
    assert sorted(str(fields["weights"]) for fields in found) == ["aa", "cc"]
    assert stored_identities(tmp_path / "nowhere") == []
