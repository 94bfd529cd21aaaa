"""The shared tier against the contract that every tier keeps, on real servers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from bul.cache.tiers.shared import SharedTier, open_shared_tier
from bul.cache.tiers.shared.tier import ACL, SENTINEL_ACL
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable
from bul.testing.tier_contract import FAR_AWAY_WALL_S, TierContract, chain_of_records, read
from bul.testing.valkey import Valkey, running_valkey

IDENTITIES = (bytes([number]) * 32 for number in itertools.count(1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    socket = tmp_path_factory.mktemp("socket") / "s"
    lines = (f"unixsocket {socket}", "unixsocketperm 700")
    with running_valkey(tmp_path_factory.mktemp("valkey"), lines=lines) as server:
        yield server


def opened(config: KVCacheConfig) -> Iterator[SharedTier]:
    """A tier with a namespace of its own, so that one server serves all tests."""
    tier = open_shared_tier(config, next(IDENTITIES))
    yield tier
    tier.close()


class TestSharedTier(TierContract):
    @pytest.fixture
    def tier(self, server: Valkey) -> Iterator[SharedTier]:
        yield from opened(KVCacheConfig(shared_url=server.url))


class TestSharedTierOverAUnixSocket(TierContract):
    @pytest.fixture
    def tier(self, server: Valkey) -> Iterator[SharedTier]:
        socket = server.ask("CONFIG", "GET", "unixsocket")[1].decode()
        credentials = server.url.removeprefix("redis://").rpartition("@")[0]
        url = f"unix://{credentials}@{socket}?db=1"
        yield from opened(KVCacheConfig(shared_url=url))


@pytest.fixture
def pair(server: Valkey) -> Iterator[tuple[SharedTier, SharedTier]]:
    """Two tiers of two identities."""
    config = KVCacheConfig(shared_url=server.url)
    tiers = [open_shared_tier(config, next(IDENTITIES)) for _ in range(2)]
    yield tiers[0], tiers[1]
    for tier in tiers:
        tier.close()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_what_is_compressed_comes_back_as_it_was(
    server: Valkey, compression: Literal["lz4", "zstd"]
) -> None:
    config = KVCacheConfig(shared_url=server.url, compression=compression)
    tier = open_shared_tier(config, next(IDENTITIES))
    records = chain_of_records(3)
    assert tier.set(records) == 3
    assert tier.stats()["bytes"] < 3 * 4096
    assert read(tier, [record.key for record in records]) == [r.payload for r in records]
    tier.close()


def test_blocks_of_another_identity_are_not_found_nor_cleared(
    pair: tuple[SharedTier, SharedTier],
) -> None:
    mine, theirs = pair
    records = chain_of_records(3)
    keys = [record.key for record in records]
    mine.set(records)
    assert theirs.match(keys) == 0
    assert theirs.get(keys) == [None] * 3
    theirs.clear()
    assert mine.match(keys) == 3


def test_a_record_under_another_identitys_name_is_not_served(
    pair: tuple[SharedTier, SharedTier], server: Valkey
) -> None:
    mine, theirs = pair
    [record] = chain_of_records(1)
    mine.set([record])
    stolen = theirs._name(record.key).decode()
    server.ask("COPY", mine._name(record.key).decode(), stolen)
    with pytest.raises(TierUnavailable, match="damaged"):
        theirs.get([record.key])
    assert server.ask("EXISTS", stolen) == 0, "what is damaged is taken out"
    assert theirs.stats()["corrupted_total"] == 1
    assert mine.get([record.key]) == [record.payload]


def test_one_damaged_record_among_sound_ones_is_one_miss(
    pair: tuple[SharedTier, SharedTier], server: Valkey
) -> None:
    mine, _ = pair
    records = chain_of_records(3)
    mine.set(records)
    server.ask("SETRANGE", mine._name(records[1].key).decode(), 300, "?")
    assert len(mine.check().problems) == 1
    found = mine.get([record.key for record in records])
    assert found == [records[0].payload, None, records[2].payload]
    assert mine.check().problems == ()
    assert mine.set(records) == 3


def test_check_with_fix_takes_out_what_is_damaged(
    pair: tuple[SharedTier, SharedTier], server: Valkey
) -> None:
    mine, _ = pair
    records = chain_of_records(2)
    mine.set(records)
    server.ask("SETRANGE", mine._name(records[0].key).decode(), 10, "?")
    assert mine.check(fix=True).blocks == 2
    assert mine.check().blocks == 1


def test_the_documented_rights_are_the_tested_ones() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "shared-cache.md"
    text = page.read_text(encoding="utf-8")
    assert ACL in text
    assert SENTINEL_ACL in text


def test_a_batch_is_a_round_trip_or_two_not_one_a_block(
    pair: tuple[SharedTier, SharedTier], server: Valkey
) -> None:
    mine, _ = pair
    records = chain_of_records(64)
    keys = [record.key for record in records]

    def calls(verb: str) -> int:
        found = server.ask("INFO", "commandstats").get(f"cmdstat_{verb}", {"calls": 0})
        return int(found["calls"])

    before = {verb: calls(verb) for verb in ("mget", "get", "exists")}
    mine.set(records)
    mine.match(keys)
    mine.get(keys)
    assert calls("mget") - before["mget"] == 1
    assert calls("get") == before["get"]
    assert calls("exists") - before["exists"] == 2


def test_a_chain_is_written_and_read_from_its_tail(
    pair: tuple[SharedTier, SharedTier], server: Valkey
) -> None:
    mine, _ = pair
    records = chain_of_records(4)
    with server.client() as watcher, watcher.monitor() as monitor:
        mine.set(records)
        mine.get([record.key for record in records])
        seen: list[list[str]] = []
        for heard in monitor.listen():
            words = heard["command"].split()
            if words[0] in ("SET", "MGET"):
                seen.append([part for part in words if part.startswith("bul:")])
            if words[0] == "MGET":
                break
    names = [mine._name(record.key).decode() for record in records]
    assert [name for found in seen[:4] for name in found] == names[::-1]
    assert seen[4] == names[::-1]


def test_a_block_has_no_expiry_unless_there_is_one_and_repeats_prolong_it(
    pair: tuple[SharedTier, SharedTier], server: Valkey
) -> None:
    mine, _ = pair
    [plain] = chain_of_records(1)
    mine.set([plain])
    assert server.ask("PTTL", mine._name(plain.key).decode()) == -1
    [timed] = chain_of_records(1, first_token=50, expires_wall_s=FAR_AWAY_WALL_S - 9)
    mine.set([timed])
    before = server.ask("PEXPIRETIME", mine._name(timed.key).decode())
    mine.set([dataclasses.replace(timed, expires_wall_s=FAR_AWAY_WALL_S)])
    assert server.ask("PEXPIRETIME", mine._name(timed.key).decode()) == before + 9000
    mine.set([dataclasses.replace(timed, expires_wall_s=FAR_AWAY_WALL_S - 5)])
    assert server.ask("PEXPIRETIME", mine._name(timed.key).decode()) == before + 9000


def test_the_servers_own_bound_holds_and_a_full_one_that_evicts_nothing_is_only_a_dropped_write(
    tmp_path: Path,
) -> None:
    lines = ("maxmemory 8mb", "maxmemory-policy allkeys-lru")
    with running_valkey(tmp_path, lines=lines) as small:
        tier = open_shared_tier(KVCacheConfig(shared_url=small.url), bytes(32))
        for first in range(0, 4000, 100):
            tier.set(chain_of_records(8, first_token=first, block_bytes=65536))
        assert small.ask("INFO", "memory")["used_memory"] <= 8 << 20
        newest = [r.key for r in chain_of_records(8, first_token=3900, block_bytes=65536)]
        assert tier.match(newest) > 0
        small.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        small.ask("CONFIG", "SET", "maxmemory", "2mb")
        with pytest.raises(TierUnavailable, match="takes nothing"):
            tier.set(chain_of_records(4, first_token=9000))
        assert tier.get(newest[:1]) != []
        tier.close()
