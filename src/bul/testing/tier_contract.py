"""What every tier must do: subclass `TierContract` in a test and give it a `tier` fixture.

It refuses to know any tier: no sizes, no files, no clock. A tier under test needs room for 64
blocks of 4 KiB. Each test that wrote ends with `check()`: index against content, both ways.

    class TestDiskTier(TierContract):
        @pytest.fixture
        def tier(self, tmp_path): ...
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from bul.blocks.chain import block_keys, chain_root
from bul.cache.contract import BlockRecord, Tier

__all__ = ["TierContract", "chain_of_records"]

LONG_AGO_WALL_S = 1.0
FAR_AWAY_WALL_S = 32_503_680_000.0


def chain_of_records(
    blocks: int,
    *,
    first_token: int = 0,
    block_bytes: int = 4096,
    expires_wall_s: float = 0.0,
    identity: bytes = bytes(32),
) -> list[BlockRecord]:
    """A chain of `blocks` records with payloads that tell one from another."""
    tokens = range(first_token, first_token + blocks * 4)
    keys = block_keys(chain_root(identity, b""), tokens, 4)
    return [
        BlockRecord(
            key=key,
            parent=parent,
            tokens=4,
            payload=(key * (block_bytes // len(key) + 1))[:block_bytes],
            expires_wall_s=expires_wall_s,
        )
        for key, parent in zip(keys, [b"", *keys[:-1]], strict=True)
    ]


def keys_of(records: Sequence[BlockRecord]) -> list[bytes]:
    return [record.key for record in records]


def read(tier: Tier, keys: Sequence[bytes]) -> list[bytes | None]:
    """What `get` gives, as bytes."""
    return [None if block is None else bytes(block) for block in tier.get(keys)]


def assert_sound(tier: Tier) -> None:
    """Index and content agree."""
    assert tier.check().problems == ()


class TierContract:
    """The tests; pytest collects the subclass."""

    def test_what_was_set_is_got_in_the_order_asked(self, tier: Tier) -> None:
        records = chain_of_records(5)
        assert tier.set(records) == 5
        keys = keys_of(records)
        assert read(tier, keys) == [record.payload for record in records]
        assert read(tier, keys[::-1]) == [record.payload for record in records[::-1]]
        assert_sound(tier)

    def test_a_miss_is_none_and_empty_requests_are_empty(self, tier: Tier) -> None:
        records = chain_of_records(3)
        tier.set(records[:1])
        assert read(tier, keys_of(records)) == [records[0].payload, None, None]
        assert tier.get([]) == []
        assert tier.set([]) == 0
        assert tier.delete([]) == 0
        assert tier.match([]) == 0

    def test_an_empty_payload_is_a_hit(self, tier: Tier) -> None:
        [record] = chain_of_records(1, block_bytes=0)
        assert tier.set([record]) == 1
        assert read(tier, [record.key]) == [b""]
        assert_sound(tier)

    def test_every_kind_of_buffer_is_taken(self, tier: Tier) -> None:
        records = chain_of_records(3)
        kinds = [bytes, bytearray, memoryview]
        given = [
            BlockRecord(key=r.key, parent=r.parent, tokens=r.tokens, payload=kind(r.payload))
            for r, kind in zip(records, kinds, strict=True)
        ]
        assert tier.set(given) == 3
        assert read(tier, keys_of(records)) == [record.payload for record in records]
        assert_sound(tier)

    def test_match_counts_the_leading_keys(self, tier: Tier) -> None:
        records = chain_of_records(6)
        tier.set(records[:4])
        keys = keys_of(records)
        assert tier.match(keys) == 4
        assert tier.match(keys[:2]) == 2
        assert tier.match(keys[4:]) == 0
        assert tier.match([bytes(32), *keys]) == 0

    def test_a_chain_can_be_continued_later(self, tier: Tier) -> None:
        records = chain_of_records(6)
        tier.set(records[:3])
        tier.set(records[3:])
        assert tier.match(keys_of(records)) == 6
        assert_sound(tier)

    def test_two_chains_share_their_beginning(self, tier: Tier) -> None:
        records = chain_of_records(3)
        fork = BlockRecord(key=b"f" * 32, parent=records[1].key, tokens=4, payload=b"fork")
        tier.set([*records, fork])
        assert read(tier, [records[1].key, fork.key]) == [records[1].payload, b"fork"]
        assert_sound(tier)

    def test_setting_again_changes_nothing(self, tier: Tier) -> None:
        records = chain_of_records(4)
        assert tier.set(records) == 4
        bytes_once = tier.stats()["bytes"]
        assert tier.set(records) == 4
        assert tier.stats()["bytes"] == bytes_once
        assert tier.stats()["blocks"] == 4
        assert_sound(tier)

    def test_deleted_blocks_are_gone_and_counted_once(self, tier: Tier) -> None:
        records = chain_of_records(4)
        tier.set(records)
        tail = keys_of(records[2:])
        assert tier.delete(tail) == 2
        assert tier.delete(tail) == 0
        assert read(tier, tail) == [None, None]
        assert tier.match(keys_of(records)) == 2
        assert_sound(tier)

    def test_a_deleted_block_can_be_set_again(self, tier: Tier) -> None:
        records = chain_of_records(2)
        tier.set(records)
        tier.delete(keys_of(records)[::-1])
        assert tier.set(records) == 2
        assert read(tier, keys_of(records)) == [record.payload for record in records]
        assert_sound(tier)

    def test_clear_leaves_nothing(self, tier: Tier) -> None:
        records = chain_of_records(4)
        tier.set(records)
        tier.clear()
        assert tier.match(keys_of(records)) == 0
        assert read(tier, keys_of(records)) == [None] * 4
        assert tier.stats()["blocks"] == 0
        assert_sound(tier)

    def test_expired_blocks_are_misses_and_others_are_not(self, tier: Tier) -> None:
        old = chain_of_records(2, expires_wall_s=LONG_AGO_WALL_S)
        young = chain_of_records(2, first_token=900, expires_wall_s=FAR_AWAY_WALL_S)
        tier.set(old)
        tier.set(young)
        assert read(tier, keys_of(old)) == [None, None]
        assert read(tier, keys_of(young)) == [record.payload for record in young]

    def test_stats_count_blocks_bytes_and_hits(self, tier: Tier) -> None:
        records = chain_of_records(3)
        tier.set(records)
        tier.get([*keys_of(records), bytes(32)])
        stats = tier.stats()
        assert stats["blocks"] == 3
        assert stats["bytes"] >= 3 * 4096
        assert stats["hits_total"] == 3
        assert stats["misses_total"] == 1

    def test_many_threads_never_see_each_others_bytes(self, tier: Tier) -> None:
        wrong: list[bytes] = []

        def work(number: int) -> None:
            records = chain_of_records(4, first_token=1000 * number)
            for _ in range(10):
                tier.set(records)
                for record, block in zip(records, read(tier, keys_of(records)), strict=True):
                    if block is not None and block != record.payload:
                        wrong.append(record.key)
                tier.delete(keys_of(records)[::-1])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        assert tier.stats()["blocks"] == 0
        assert_sound(tier)
