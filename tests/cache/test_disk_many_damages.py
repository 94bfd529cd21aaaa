"""Ten thousand records damaged where they lie: ten thousand misses, and the control serves them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bul.blocks.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, padded
from bul.cache.contract import BlockRecord
from bul.testing.disk_crash import NaiveStore
from bul.testing.disk_folder import MIB, Open, segments_of
from bul.testing.tier_contract import chain_of_records, keys_of

pytestmark = pytest.mark.steady

RECORDS = 10_000
PAYLOAD_BYTES = 832
RECORD_BYTES = padded(RECORD_HEADER_BYTES + PAYLOAD_BYTES)
assert RECORD_BYTES == RECORD_HEADER_BYTES + PAYLOAD_BYTES, "no padding, which may change unseen"


def records() -> list[BlockRecord]:
    """Chains of 100, and no two payloads alike."""
    dice = random.Random(11)
    return [
        BlockRecord(
            key=record.key,
            parent=record.parent,
            tokens=record.tokens,
            payload=dice.randbytes(PAYLOAD_BYTES),
        )
        for number in range(RECORDS // 100)
        for record in chain_of_records(100, first_token=number * 1000, block_bytes=32)
    ]


def damaged(data: bytes, others: bytes, dice: random.Random) -> tuple[str, bytes]:
    """The kind of damage, and other bytes of the same length. others: another record."""
    kind = dice.choice(["bit", "zeros", "garbage", "moved", "swapped"])
    start = dice.randrange(len(data))
    end = min(len(data), start + dice.randrange(1, 600))
    changed = bytearray(data)
    if kind == "zeros":
        changed[start:end] = bytes(end - start)
    elif kind == "garbage":
        changed[start:end] = dice.randbytes(end - start)
    elif kind == "moved":
        changed = changed[1:] + changed[:1]
    elif kind == "swapped":
        changed[:] = others
    if kind == "bit" or changed == data:
        changed[start] ^= 1 << dice.randrange(8)
    return kind, bytes(changed)


def damage_all(folder: Path, dice: random.Random) -> Counter[str]:
    """Damage each record of each sealed segment once; how many, by kind."""
    kinds: Counter[str] = Counter()
    for path in segments_of(folder):
        data = bytearray(path.read_bytes())
        whole = bytes(data)
        for at in places(whole):
            other = (
                at + RECORD_BYTES if at + 2 * RECORD_BYTES < len(whole) else SEGMENT_HEADER_BYTES
            )
            kind, changed = damaged(
                whole[at : at + RECORD_BYTES], whole[other : other + RECORD_BYTES], dice
            )
            data[at : at + RECORD_BYTES] = changed
            kinds[kind] += 1
        path.write_bytes(data)
    return kinds


def places(segment: bytes) -> Iterator[int]:
    at = SEGMENT_HEADER_BYTES
    while segment[at : at + 4] == b"BULb":
        yield at
        at += RECORD_BYTES


@pytest.mark.slow
def test_ten_thousand_damaged_records_are_ten_thousand_misses(
    open_tier: Open, tmp_path: Path
) -> None:
    written = records()
    tier = open_tier(bytes_max=64 * MIB)
    assert tier.set(written) == RECORDS
    assert list(tier.get(keys_of(written))) == [record.payload for record in written]
    tier.close()
    kinds = damage_all(tmp_path / "kv", random.Random(5))
    assert kinds.total() == RECORDS
    assert min(kinds.values()) > RECORDS // 10
    again = open_tier(bytes_max=64 * MIB)
    assert again.match(keys_of(written)) == RECORDS  # the index still believes in them
    assert again.get(keys_of(written)) == [None] * RECORDS
    assert again.stats()["corrupted_total"] == RECORDS
    assert again.get(keys_of(written)) == [None] * RECORDS
    assert again.set(written) == RECORDS
    assert list(again.get(keys_of(written))) == [record.payload for record in written]


@pytest.mark.slow
def test_a_file_for_each_block_serves_what_was_damaged(tmp_path: Path) -> None:
    """The control."""
    written, dice = records()[:1000], random.Random(5)
    store = NaiveStore(tmp_path)
    store.set(written)
    for record in written:
        _, changed = damaged(bytes(record.payload), bytes(PAYLOAD_BYTES), dice)
        (tmp_path / record.key.hex()).write_bytes(changed)
    found = store.get(keys_of(written))
    assert (
        sum(block != record.payload for block, record in zip(found, written, strict=True)) == 1000
    )
