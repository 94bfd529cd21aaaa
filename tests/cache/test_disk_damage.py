"""The disk tier and bad files: damaged, swapped, foreign, empty, old; each is a miss or a line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bul.blocks.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from bul.cache.contract import BlockRecord
from bul.cache.tiers.disk import DiskTier, open_disk_tier
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable
from bul.testing.disk_folder import IDENTITY, MIB, Open, crash, segments_of
from bul.testing.tier_contract import chain_of_records, keys_of, read


def test_a_file_where_the_folder_should_be_is_one_clear_line(
    open_tier: Open, tmp_path: Path
) -> None:
    (tmp_path / "kv").write_text("not a folder")
    with pytest.raises(TierUnavailable, match="must be a folder"):
        open_tier()


def test_a_missing_persistence_dir_is_one_clear_line() -> None:
    with pytest.raises(TierUnavailable, match="persistence_dir"):
        open_disk_tier(KVCacheConfig(enable_persistence=True), IDENTITY)


def test_foreign_files_are_reported_and_left_alone(open_tier: Open, tmp_path: Path) -> None:
    tier = open_tier()
    folder = tmp_path / "kv" / IDENTITY.hex()[:40]
    (folder / "holiday.jpg").write_bytes(b"x" * 1000)
    (folder / "1.seg").mkdir()
    tier.set(chain_of_records(2))
    assert len(tier.check(fix=True).problems) == 2
    assert (folder / "holiday.jpg").read_bytes() == b"x" * 1000


def damage_segments(folder: Path, how: str) -> None:
    first, second = segments_of(folder)[:2]
    if how == "swapped":
        parked = first.with_name("parked")
        first.rename(parked)
        second.rename(first)
        parked.rename(second)
    elif how == "empty":
        first.write_bytes(b"")
    elif how == "garbage":
        first.write_bytes(os.urandom(first.stat().st_size))
    elif how == "old version":
        data = bytearray(first.read_bytes())
        data[8] = 0
        first.write_bytes(data)
    elif how == "folder":
        first.unlink()
        first.mkdir()
    elif how == "gone":
        first.unlink()
    else:
        with first.open("r+b") as file:
            file.truncate(first.stat().st_size // 2)


@pytest.mark.parametrize("again", ["clean", "crashed"])
@pytest.mark.parametrize(
    "how", ["swapped", "empty", "garbage", "old version", "truncated", "folder", "gone"]
)
def test_damaged_segments_are_misses(open_tier: Open, tmp_path: Path, how: str, again: str) -> None:
    tier = open_tier(bytes_max=MIB)
    records = chain_of_records(40)
    for start in range(0, 40, 8):
        tier.set(records[start : start + 8])
    tier.close()
    folder = tmp_path / "kv"
    if again == "crashed":
        (folder / IDENTITY.hex()[:40] / "clean").unlink()
    damage_segments(folder, how)
    tier = open_tier(bytes_max=MIB)
    found = read(tier, keys_of(records))
    assert None in found
    assert all(
        block in (None, record.payload) for block, record in zip(found, records, strict=True)
    )
    assert tier.set(records) == 40
    assert read(tier, keys_of(records)) == [record.payload for record in records]
    tier.check(fix=True)


@pytest.mark.parametrize("name", ["index", "state", "users.lock", "index.lock", "clean"])
@pytest.mark.parametrize("content", [b"", os.urandom(5000), b"\xff" * 64])
def test_damaged_small_files_cost_nothing_but_misses(
    open_tier: Open, tmp_path: Path, name: str, content: bytes
) -> None:
    tier = open_tier()
    records = chain_of_records(5)
    tier.set(records)
    tier.close()
    (tmp_path / "kv" / IDENTITY.hex()[:40] / name).write_bytes(content)
    tier = open_tier()
    assert read(tier, keys_of(records)) == [record.payload for record in records]
    more = chain_of_records(5, first_token=100)
    assert tier.set(more) == 5
    assert read(tier, keys_of(more)) == [record.payload for record in more]
    assert tier.check().problems == ()


def test_an_index_overwritten_under_a_running_tier_costs_misses_only(
    open_tier: Open, tmp_path: Path
) -> None:
    tier = open_tier()
    records = chain_of_records(50)
    tier.set(records)
    index = tmp_path / "kv" / IDENTITY.hex()[:40] / "index"
    damaged = bytearray(index.read_bytes())
    for at in range(1024, len(damaged)):
        if at % 64 >= 32:
            damaged[at] ^= 0xA5
    index.write_bytes(damaged)
    assert read(tier, keys_of(records)) == [None] * 50
    assert tier.set(records) == 50
    assert read(tier, keys_of(records)) == [record.payload for record in records]
    index.write_bytes(b"")
    assert read(tier, keys_of(records)) == [None] * 50


def test_check_finds_damage_and_mends_it(open_tier: Open, tmp_path: Path) -> None:
    tier = open_tier()
    records = chain_of_records(4)
    tier.set(records)
    [segment] = segments_of(tmp_path)
    with segment.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + 10)
        file.write(b"?")
    [problem] = tier.check().problems
    assert "damaged" in problem
    assert len(tier.check(fix=True).problems) == 1
    assert tier.check().problems == ()
    assert tier.match([records[0].key]) == 0


def test_check_finds_blocks_that_the_index_lost(open_tier: Open, tmp_path: Path) -> None:
    tier = open_tier()
    records = chain_of_records(4)
    tier.set(records)
    tier.close()
    index = tmp_path / "kv" / IDENTITY.hex()[:40] / "index"
    head = index.read_bytes()[:1024]
    index.write_bytes(head.ljust(index.stat().st_size, b"\0"))
    tier = open_tier()
    assert tier.match(keys_of(records)) == 0
    assert len(tier.check(fix=True).problems) == 4
    assert tier.check().problems == ()
    assert tier.match(keys_of(records)) == 4


def test_one_flipped_bit_is_one_miss_and_is_set_right_by_the_next_set(
    open_tier: Open, tmp_path: Path
) -> None:
    tier = open_tier()
    records = chain_of_records(3)
    tier.set(records)
    [segment] = segments_of(tmp_path)
    with segment.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + 4096 + RECORD_HEADER_BYTES)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert read(tier, keys_of(records)) == [records[0].payload, None, records[2].payload]
    assert tier.stats()["corrupted_total"] == 1
    assert tier.stats()["suspect_segments"] == 1
    assert tier.set(records) == 3
    assert read(tier, keys_of(records)) == [record.payload for record in records]


def test_a_value_that_contains_a_record_is_no_record(open_tier: Open, tmp_path: Path) -> None:
    """Smuggling: bytes of a real record inside a value must not come up in a rebuild."""
    tier = open_tier()
    [victim] = chain_of_records(1)
    tier.set([victim])
    [segment] = segments_of(tmp_path)
    forged = segment.read_bytes()[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + 5000]
    tier.delete([victim.key])
    tier.set([BlockRecord(key=b"value", parent=b"", tokens=0, payload=forged)])
    after = crash(tmp_path / "kv")
    [segment] = segments_of(after)
    with segment.open("r+b") as file:  # the value's own header is damaged: the scan looks inside
        file.seek(SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + 4096 + 60)
        file.write(b"\xff")
    again = DiskTier(after, IDENTITY, bytes_max=64 * MIB)
    assert read(again, [victim.key]) == [None]
    assert again.stats()["blocks"] == 0
    again.close()
