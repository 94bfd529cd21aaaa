"""The disk tier: what survives, what is refused, who goes first, and how much it takes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from bul.blocks.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from bul.blocks.identity import Identity
from bul.cache.contract import BlockRecord
from bul.cache.tiers.disk import DiskTier, open_disk_tier
from bul.cache.tiers.disk.append import segment_bytes_for
from bul.config import KVCacheConfig
from bul.testing.clock import ManualClock
from bul.testing.disk_folder import IDENTITY, MIB, Open, crash, segments_of
from bul.testing.tier_contract import chain_of_records, keys_of, read


def du_bytes(folder: Path) -> int:
    out = subprocess.run(["du", "-s", "-B1", folder], check=True, capture_output=True, text=True)
    return int(out.stdout.split()[0])


# -- what survives


def test_blocks_survive_a_restart(open_tier: Open) -> None:
    records = chain_of_records(6)
    tier = open_tier()
    tier.set(records)
    tier.close()
    again = open_tier()
    assert again.stats()["rebuilt_blocks_total"] == 0
    assert read(again, keys_of(records)) == [record.payload for record in records]
    assert again.check().problems == ()


def test_blocks_survive_the_loss_of_everybody(open_tier: Open, tmp_path: Path) -> None:
    records = chain_of_records(6)
    tier = open_tier()
    tier.set(records)
    after = crash(tmp_path / "kv")
    again = DiskTier(after, IDENTITY, bytes_max=64 * MIB)
    assert again.stats()["rebuilt_blocks_total"] == 6
    assert read(again, keys_of(records)) == [record.payload for record in records]
    assert again.check().problems == ()
    again.close()


def test_a_deleted_block_does_not_come_back_in_a_rebuild(open_tier: Open, tmp_path: Path) -> None:
    records = chain_of_records(3)
    tier = open_tier()
    tier.set(records)
    tier.delete([records[2].key])
    again = DiskTier(crash(tmp_path / "kv"), IDENTITY, bytes_max=64 * MIB)
    assert read(again, keys_of(records)) == [records[0].payload, records[1].payload, None]
    again.close()


def test_a_general_value_is_overwritten_and_stays_so(open_tier: Open, tmp_path: Path) -> None:
    tier = open_tier()
    for value in (b"old", b"new", b""):
        tier.set([BlockRecord(key="clé".encode(), parent=b"", tokens=0, payload=value)])
        assert read(tier, ["clé".encode()]) == [value]
    again = DiskTier(crash(tmp_path / "kv"), IDENTITY, bytes_max=64 * MIB)
    assert read(again, ["clé".encode()]) == [b""]
    assert again.stats()["blocks"] == 1
    again.close()


def test_a_torn_tail_is_cut_off_and_the_rest_kept(open_tier: Open, tmp_path: Path) -> None:
    records = chain_of_records(4)
    tier = open_tier()
    tier.set(records)
    after = crash(tmp_path / "kv")
    [segment] = segments_of(after)
    record_bytes = RECORD_HEADER_BYTES + 4096
    with segment.open("r+b") as file:
        file.truncate(SEGMENT_HEADER_BYTES + 3 * record_bytes + 1000)
    again = DiskTier(after, IDENTITY, bytes_max=64 * MIB)
    assert read(again, keys_of(records))[:3] == [record.payload for record in records[:3]]
    assert read(again, keys_of(records))[3] is None
    assert again.check().problems == ()
    again.close()


def test_a_damaged_header_costs_one_block_in_a_rebuild(open_tier: Open, tmp_path: Path) -> None:
    records = chain_of_records(4)
    tier = open_tier()
    tier.set(records)
    after = crash(tmp_path / "kv")
    [segment] = segments_of(after)
    with segment.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + 4096 + 50)
        file.write(b"\xff\xff")
    again = DiskTier(after, IDENTITY, bytes_max=64 * MIB)
    found = read(again, keys_of(records))
    assert found == [records[0].payload, None, records[2].payload, records[3].payload]
    again.close()


def test_recency_survives_a_restart_and_a_crash(open_tier: Open, tmp_path: Path) -> None:
    # Sixteen segments of 64 KiB; the first chain is used while others come, and so stays.
    tier = open_tier(bytes_max=MIB)
    used = chain_of_records(4)
    tier.set(used)
    for number in range(1, 8):
        tier.set(chain_of_records(12, first_token=number * 1000))
    tier.get(keys_of(used))
    tier.close()
    for folder in (tmp_path / "kv", crash(tmp_path / "kv")):
        (folder / IDENTITY.hex()[:40] / "clean").unlink(missing_ok=folder.name == "kv")
        again = DiskTier(folder, IDENTITY, bytes_max=MIB)
        for number in range(8, 22):
            again.set(chain_of_records(12, first_token=number * 1000))
        assert again.match(keys_of(used)) == 4
        assert again.match(keys_of(chain_of_records(12, first_token=1000))) == 0
        again.close()


# -- sharing


def test_two_tiers_over_one_folder_see_each_others_blocks(open_tier: Open) -> None:
    mine, yours = chain_of_records(4), chain_of_records(4, first_token=500)
    one, two = open_tier(), open_tier()
    one.set(mine)
    two.set(yours)
    assert read(two, keys_of(mine)) == [record.payload for record in mine]
    assert read(one, keys_of(yours)) == [record.payload for record in yours]
    one.delete(keys_of(yours))
    assert two.match(keys_of(yours)) == 0
    two.clear()
    assert one.match(keys_of(mine)) == 0
    assert one.set(mine) == 4
    assert read(two, keys_of(mine)) == [record.payload for record in mine]
    assert one.check().problems == ()


def test_a_newcomer_does_not_rebuild_while_others_are_in(open_tier: Open) -> None:
    one = open_tier()
    one.set(chain_of_records(4))
    two = open_tier()
    assert two.stats()["rebuilt_blocks_total"] == 0
    assert two.match(keys_of(chain_of_records(4))) == 4


def test_the_index_grows_under_the_feet_of_others(open_tier: Open) -> None:
    one, two = open_tier(), open_tier()
    records = chain_of_records(3000, block_bytes=64)
    for start in range(0, 3000, 100):
        one.set(records[start : start + 100])
    assert 64 * 3000 < one.stats()["index_bytes"] < 130 * 3000
    assert two.match(keys_of(records)) == 3000
    assert two.check().problems == ()


def test_another_identity_never_sees_the_blocks(open_tier: Open) -> None:
    records = chain_of_records(3)
    open_tier().set(records)
    other = open_tier(b"j" * 32)
    assert other.match(keys_of(records)) == 0
    assert read(other, keys_of(records)) == [None] * 3


def test_files_renamed_into_another_identity_are_refused(open_tier: Open, tmp_path: Path) -> None:
    records = chain_of_records(3)
    tier = open_tier()
    tier.set(records)
    tier.close()
    mine = tmp_path / "kv" / IDENTITY.hex()[:40]
    mine.rename(mine.with_name((b"j" * 32).hex()[:40]))
    other = open_tier(b"j" * 32)
    assert read(other, keys_of(records)) == [None] * 3
    assert any("refused" in problem for problem in other.check(fix=True).problems)
    assert other.check().problems == ()


def test_identity_and_permissions_can_be_seen(tmp_path: Path) -> None:
    identity = Identity(
        weights="w",
        tokenizer="t",
        adapter="",
        kv_dtype="f16",
        layout="l",
        layers=2,
        row_bytes=4,
        block_tokens=64,
        rope="r",
        engine="e",
        instruction_set="i",
        prefill_call_tokens=64,
        flash_attention="off",
    )
    config = KVCacheConfig(enable_persistence=True, persistence_dir=str(tmp_path / "kv"))
    tier = open_disk_tier(config, identity)
    tier.set(chain_of_records(1))
    folder = tmp_path / "kv" / identity.digest().hex()[:40]
    assert json.loads((folder / "identity.json").read_text())["kv_dtype"] == "f16"
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    tier.close()


# -- who goes, and how much it takes


def test_the_budget_holds_during_ten_times_overwrite_and_after_a_restart(
    open_tier: Open, tmp_path: Path
) -> None:
    budget = 2 * MIB
    tiers = [open_tier(bytes_max=budget) for _ in range(3)]
    most, number = 0, 0
    while number * 64 * 4096 < 10 * budget:
        tiers[number % 3].set(chain_of_records(64, first_token=number * 1000))
        number += 1
        most = max(most, du_bytes(tmp_path / "kv"))
    assert most <= budget + segment_bytes_for(budget)
    assert tiers[0].stats()["dropped_blocks_total"] == 0
    for tier in tiers:
        tier.close()
    again = open_tier(bytes_max=budget // 2)
    assert du_bytes(tmp_path / "kv") <= budget // 2
    assert again.stats()["blocks"] > 0
    assert again.check().problems == ()


def test_a_naive_store_breaks_the_budget(tmp_path: Path) -> None:
    for number in range(40):
        for record in chain_of_records(16, first_token=number * 1000):
            (tmp_path / record.key.hex()).write_bytes(bytes(record.payload))
    assert du_bytes(tmp_path) > 2 * MIB


def test_used_blocks_move_on_and_unused_ones_go(open_tier: Open) -> None:
    tier = open_tier(bytes_max=MIB)
    used, unused = chain_of_records(3), chain_of_records(3, first_token=500)
    tier.set(used)
    tier.set(unused)
    for number in range(1, 40):
        tier.set(chain_of_records(12, first_token=number * 1000))
        tier.get(keys_of(used))
    assert tier.match(keys_of(used)) == 3
    assert tier.match(keys_of(unused)) == 0
    assert tier.stats()["reinserted_blocks_total"] >= 3
    assert tier.check().problems == ()


def test_an_orphan_is_not_carried_on(open_tier: Open) -> None:
    tier = open_tier(bytes_max=MIB)
    chain = chain_of_records(3)
    tier.set(chain)
    tier.delete([chain[1].key])
    for number in range(1, 40):
        tier.set(chain_of_records(12, first_token=number * 1000))
        tier.get([chain[0].key, chain[2].key])
    assert tier.match([chain[0].key]) == 1
    assert tier.match([chain[2].key]) == 0


def test_an_identity_that_nobody_uses_goes_first(open_tier: Open, tmp_path: Path) -> None:
    old = open_tier(b"o" * 32, bytes_max=MIB)
    old.set(chain_of_records(200))
    old.close()
    tier = open_tier(bytes_max=MIB)
    tier.set(chain_of_records(200, first_token=9000))
    assert tier.stats()["blocks"] >= 150
    assert not (tmp_path / "kv" / (b"o" * 32).hex()[:40]).exists()
    assert du_bytes(tmp_path / "kv") <= MIB + segment_bytes_for(MIB)


def test_two_identities_in_use_share_one_budget(open_tier: Open, tmp_path: Path) -> None:
    one, two = open_tier(bytes_max=MIB), open_tier(b"o" * 32, bytes_max=MIB)
    for number in range(20):
        one.set(chain_of_records(16, first_token=number * 1000))
        two.set(chain_of_records(16, first_token=number * 1000))
    assert du_bytes(tmp_path / "kv") <= MIB + segment_bytes_for(MIB)
    for tier in (one, two):
        assert tier.match(keys_of(chain_of_records(16, first_token=19_000))) == 16
        assert tier.check().problems == ()


def test_a_block_larger_than_half_the_budget_is_dropped_and_counted(open_tier: Open) -> None:
    tier = open_tier(bytes_max=4 * MIB)
    [large] = chain_of_records(1, block_bytes=3 * MIB)
    small = chain_of_records(2)
    assert tier.set([large]) == 0
    assert tier.stats()["dropped_blocks_total"] == 1
    assert tier.set(small) == 2


def test_a_block_larger_than_a_segment_is_kept(open_tier: Open) -> None:
    tier = open_tier(bytes_max=16 * MIB)
    [large] = chain_of_records(1, block_bytes=5 * MIB)
    assert tier.set([large]) == 1
    assert read(tier, [large.key]) == [large.payload]


# -- time


def test_a_block_lives_until_its_time_and_clock_jumps_do_no_harm(open_tier: Open) -> None:
    clock = ManualClock()
    tier = open_tier(clock=clock)
    now_s = clock.wall_s()
    records = chain_of_records(2, expires_wall_s=now_s + 100.0)
    tier.set(records)
    clock.advance(99.9)
    assert tier.match(keys_of(records)) == 2
    assert read(tier, keys_of(records)) == [record.payload for record in records]
    clock.advance(0.1)
    assert tier.match(keys_of(records)) == 0
    assert read(tier, keys_of(records)) == [None, None]


def test_a_repeat_extends_a_life_that_is_half_over(open_tier: Open) -> None:
    clock = ManualClock()
    tier = open_tier(clock=clock)
    start_s = clock.wall_s()
    tier.set(chain_of_records(1, expires_wall_s=start_s + 100))
    clock.advance(40)
    tier.set(chain_of_records(1, expires_wall_s=start_s + 140))
    assert tier.stats()["set_blocks_total"] == 1
    clock.advance(50)
    tier.set(chain_of_records(1, expires_wall_s=start_s + 190))
    assert tier.stats()["set_blocks_total"] == 2
    clock.advance(60)
    assert tier.match(keys_of(chain_of_records(1))) == 1
    assert tier.check().problems == ()
