"""General values of several hosts over one Valkey: the newest version wins, also a deletion."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from bul.cache.contract import BlockRecord
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.general import FRESH_S
from bul.cache.tiers.shared import SharedTier, open_shared_tier
from bul.cache.versions import AHEAD_MS_MAX, TIME_BITS, VersionClock
from bul.config import KVCacheConfig
from bul.testing.clock import ManualClock
from bul.testing.valkey import Valkey, running_valkey

KEY = b"k" * 32
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def config(server: Valkey) -> KVCacheConfig:
    return KVCacheConfig(ram_bytes_max=1 << 20, shared_url=server.url)


@pytest.fixture
def tier(config: KVCacheConfig) -> Iterator[SharedTier]:
    tier = open_shared_tier(config, bytes([next(NUMBERS)]) * 32)
    yield tier
    tier.close()


Hosts = tuple[UltraAdaptiveKVCacheEngine, UltraAdaptiveKVCacheEngine, ManualClock]


@pytest.fixture
async def hosts(config: KVCacheConfig) -> AsyncIterator[Hosts]:
    """Two engines on one clock, each with a RAM of its own."""
    clock, identity = ManualClock(), bytes([next(NUMBERS)]) * 32
    engines = [
        UltraAdaptiveKVCacheEngine(
            config, identity=identity, tiers=[open_shared_tier(config, identity)], clock=clock
        )
        for _ in range(2)
    ]
    yield engines[0], engines[1], clock
    for engine in engines:
        engine.close()


def value(payload: bytes, version: int) -> BlockRecord:
    return BlockRecord(key=KEY, parent=b"", tokens=0, payload=payload, version=version)


def test_an_older_write_that_comes_late_changes_nothing(tier: SharedTier) -> None:
    assert tier.set([value(b"new", 20)]) == 1
    assert tier.set([value(b"old", 10)]) == 1
    assert tier.get([KEY]) == [b"new"]
    tier.set([value(b"newer", 30)])
    assert tier.get([KEY]) == [b"newer"]


def test_control_without_versions_the_late_write_wins(tier: SharedTier) -> None:
    tier.set([value(b"new", 0)])
    tier.set([value(b"old", 0)])
    assert tier.get([KEY]) == [b"old"]


def test_a_deletion_is_remembered_against_older_writes(tier: SharedTier) -> None:
    tier.set([value(b"x", 10)])
    assert tier.delete_values([KEY], 20) == 1
    assert tier.delete_values([KEY], 21) == 0
    tier.set([value(b"x", 15)])
    assert tier.get([KEY]) == [b"v" + (21).to_bytes(8, "big") + b"d"]
    tier.set([value(b"y", 22)])
    assert tier.get([KEY]) == [b"y"]
    assert tier.delete_values([KEY], 5) == 0
    assert tier.get([KEY]) == [b"y"]


def test_a_tombstone_is_no_block_in_any_count(tier: SharedTier) -> None:
    tier.set([value(b"x", 10)])
    tier.delete_values([KEY], 20)
    assert tier.stats()["blocks"] == 0
    assert tier.check().blocks == 0


async def test_a_host_sees_what_another_has_written(hosts: Hosts) -> None:
    first, second, _ = hosts
    await first.set("key", {"n": 1})
    assert first.flush()
    assert await second.get("key") == {"n": 1}


async def test_what_lies_in_ram_is_believed_for_a_second_only(hosts: Hosts) -> None:
    first, second, clock = hosts
    await first.set("key", 1)
    clock.advance(0.001)
    await second.set("key", 2)
    assert first.flush()
    assert second.flush()
    assert await first.get("key") == 1
    clock.advance(FRESH_S)
    assert await first.get("key") == 2
    assert await second.get("key") == 2


async def test_the_last_of_two_writes_wins_whichever_queue_is_slower(hosts: Hosts) -> None:
    first, second, clock = hosts
    await first.set("key", "older")
    clock.advance(0.001)
    await second.set("key", "newer")
    assert second.flush()
    assert first.flush()
    clock.advance(FRESH_S)
    assert await first.get("key") == "newer"


async def test_a_deletion_reaches_the_other_hosts_ram(hosts: Hosts) -> None:
    first, second, clock = hosts
    await first.set("key", 1)
    assert first.flush()
    assert await second.get("key") == 1
    assert await second.delete("key")
    clock.advance(FRESH_S)
    assert await first.get("key", default="gone") == "gone"
    await first.set("key", 3)
    assert first.flush()
    assert await second.get("key") == 3


async def test_a_server_that_is_away_leaves_ram_its_values(hosts: Hosts, server: Valkey) -> None:
    first, _, clock = hosts
    await first.set("key", 1)
    assert first.flush()
    server.kill()
    try:
        clock.advance(FRESH_S)
        assert await first.get("key") == 1
    finally:
        server.start()


def test_versions_grow_when_the_wall_clock_goes_back() -> None:
    clock = ManualClock()
    versions = VersionClock(clock)
    before = versions.next()
    assert versions.next() > before
    versions.observe(before + (1000 << TIME_BITS))
    assert versions.next() > before + (1000 << TIME_BITS)


def test_two_hosts_never_make_the_same_version_in_the_same_moment() -> None:
    clock = ManualClock()
    assert VersionClock(clock, writer=1).next() != VersionClock(clock, writer=2).next()


def test_a_version_from_the_far_future_is_not_followed() -> None:
    clock = ManualClock()
    versions = VersionClock(clock)
    latest_ms = int(clock.wall_s() * 1000) + AHEAD_MS_MAX
    versions.observe((latest_ms + 1) << TIME_BITS)
    assert versions.next() < latest_ms << TIME_BITS
    versions.observe(latest_ms << TIME_BITS)
    assert versions.next() > latest_ms << TIME_BITS
