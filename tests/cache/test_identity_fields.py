"""Each field of the identity, changed alone, makes every block a stranger: in RAM and on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bul.blocks.chain import block_keys, chain_root
from bul.blocks.identity import Identity
from bul.cache.contract import BlockRecord
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk import DiskTier
from bul.config import KVCacheConfig

IDENTITY = Identity(
    weights="w",
    tokenizer="t",
    adapter="",
    kv_dtype="f16",
    layout="layers,kv,tokens,row",
    layers=30,
    row_bytes=384,
    block_tokens=64,
    rope="10000",
    engine="llama.cpp 1",
    instruction_set="avx2",
    prefill_call_tokens=64,
    flash_attention="off",
)
FIELDS = [field.name for field in dataclasses.fields(Identity)]
TOKENS = list(range(3 * 64))
PAYLOAD = b"k" * 512


def _flipped(name: str) -> Identity:
    value = getattr(IDENTITY, name)
    other = value + 1 if isinstance(value, int) else value + "x"
    change: dict[str, Any] = {name: other}
    return dataclasses.replace(IDENTITY, **change)


def _keys(identity: Identity, salt: bytes = b"") -> list[bytes]:
    return block_keys(chain_root(identity.digest(), salt), TOKENS, 64)


def _hits(engine: UltraAdaptiveKVCacheEngine, keys: list[bytes]) -> int:
    match = engine.match_prefix(keys)
    found = len(match.blocks)
    match.release()
    return found


def test_there_are_at_least_twelve_fields() -> None:
    assert len(FIELDS) >= 12


@pytest.fixture(scope="module")
def engine() -> UltraAdaptiveKVCacheEngine:
    engine = UltraAdaptiveKVCacheEngine(KVCacheConfig(max_tokens=4096), tiers=())
    keys = _keys(IDENTITY)
    match = engine.match_prefix(keys)
    engine.set_blocks(keys, 0, [PAYLOAD] * len(keys))
    match.release()
    return engine


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_flipped_alone_finds_nothing_in_ram(
    engine: UltraAdaptiveKVCacheEngine, name: str
) -> None:
    assert _hits(engine, _keys(IDENTITY)) == 3  # the control: the same identity finds all
    assert _hits(engine, _keys(_flipped(name))) == 0


def test_another_salt_finds_nothing_in_ram(engine: UltraAdaptiveKVCacheEngine) -> None:
    assert _hits(engine, _keys(IDENTITY, b"tenant")) == 0


def test_a_field_flipped_alone_finds_nothing_on_disk_not_even_by_the_old_keys(
    tmp_path: Path,
) -> None:
    keys = _keys(IDENTITY)
    records = [
        BlockRecord(key=key, parent=parent, tokens=64, payload=PAYLOAD)
        for key, parent in zip(keys, [b"", *keys], strict=False)
    ]
    first = DiskTier(tmp_path, IDENTITY, bytes_max=64 << 20)
    assert first.set(records) == 3
    first.close()
    found = {}
    for name in FIELDS:
        tier = DiskTier(tmp_path, _flipped(name), bytes_max=64 << 20)
        # The very keys of the other identity: its folder and its records must both refuse.
        found[name] = [got is not None for got in tier.get(keys)]
        tier.close()
    assert found == {name: [False] * 3 for name in FIELDS}
    again = DiskTier(tmp_path, IDENTITY, bytes_max=64 << 20)
    assert all(got is not None for got in again.get(keys))  # the control
    again.close()
