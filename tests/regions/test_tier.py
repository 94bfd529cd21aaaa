"""The regions tier: a replica's view of the world, through its region's agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bul.cache.contract import BlockRecord
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable
from bul.regions.auth import Seal
from bul.regions.fetch import EXPLORE_EVERY
from bul.regions.telling import TellingEngine
from bul.regions.tier import RegionsTier
from bul.regions.versions import tenant_tag
from bul.testing.region_agents import SECRET, MemoryStore, RegionsHere, block, regions_here
from bul.testing.waiting import eventually

pytestmark = pytest.mark.slow
US, EU = "us-east", "eu-west"
MODEL = b"m" * 32


def tier_of(world: RegionsHere, region: str) -> RegionsTier:
    return RegionsTier(Seal(SECRET, region), world.agents[region].url, MODEL)


def record(number: int, tenant: str = "") -> BlockRecord:
    entry = block(number)
    payload = MemoryStore.payload(entry)
    return BlockRecord(key=entry.key, parent=b"", tokens=64, payload=payload, tenant=tenant)


async def synced(world: RegionsHere) -> None:
    def all_synced() -> bool:
        peers = [p for agent in world.agents.values() for p in agent.node.peers.values()]
        return all(peer.link.synced for peer in peers)

    await eventually("all are compared", all_synced)


async def test_what_a_replica_tells_is_found_by_a_replica_elsewhere(tmp_path: Path) -> None:
    async with regions_here((US, EU), tmp_path) as world:
        await synced(world)
        here, there = tier_of(world, US), tier_of(world, EU)
        records = [record(number) for number in range(3)]
        keys = [one.key for one in records]
        for number in range(3):
            world.stores[US].put(block(number))
        assert await asyncio.to_thread(here.set, records) == 3
        await eventually("it spreads", lambda: len(world.stores[EU].blocks) == 3)
        world.stores[EU].blocks.clear()
        assert await asyncio.to_thread(there.match, [*keys, block(9).key]) >= 3
        found = await asyncio.to_thread(there.get, [*keys, block(9).key])
        assert [None if b is None else bytes(b) for b in found] == [
            *(one.payload for one in records),
            None,
        ]
        for tier in (here, there):
            await asyncio.to_thread(tier.close)


async def test_a_miss_that_no_region_told_of_does_not_cross_the_ocean(tmp_path: Path) -> None:
    async with regions_here((US, EU), tmp_path) as world:
        await synced(world)
        tier = tier_of(world, US)
        await world.agents[US]._replicator.stop()  # a late ping would make the world unknown
        for number in range(EXPLORE_EVERY - 1):
            assert await asyncio.to_thread(tier.match, [block(number).key]) == 0
        # Now and then one is asked for all the same, else a mistake would last for ever.
        assert await asyncio.to_thread(tier.match, [block(0).key]) == 1
        assert world.agents[US].fetcher.asked_total == 0
        await asyncio.to_thread(tier.close)


async def test_a_purge_elsewhere_is_heard_and_finds_what_the_tenant_wrote(tmp_path: Path) -> None:
    async with regions_here((US, EU), tmp_path) as world:
        await synced(world)
        tier = tier_of(world, US)
        heard: list[bool] = []
        tier.on_purge = lambda: heard.append(True)
        for number in range(2):
            world.stores[US].put(block(number))
        await asyncio.to_thread(tier.set, [record(0, "acme"), record(1, "other")])
        await eventually("it spreads", lambda: len(world.stores[EU].blocks) == 2)
        await asyncio.sleep(0.6)  # the tier looks at what is purged already
        await world.agents[EU].node.erase("tenant", tenant_tag("acme"))
        await eventually("it is heard", lambda: bool(heard))
        assert set(world.stores[US].blocks) == set(world.stores[EU].blocks) == {block(1).key}
        await asyncio.to_thread(tier.close)


async def test_what_replicas_use_is_hot(tmp_path: Path) -> None:
    async with regions_here((US,), tmp_path) as world:
        settings = KVCacheConfig(ram_bytes_max=1 << 20)
        tier = tier_of(world, US)
        engine = TellingEngine(settings, identity=MODEL, tiers=[tier], regions=tier)
        await world.write(US, [block(number) for number in range(4)])
        engine.finish([block(0).key, block(1).key], 1)
        catalogue = world.agents[US].node.state.catalogue
        hot = {block(0).key, block(1).key}
        await eventually(
            "it is heard", lambda: {entry.key for entry in catalogue.hottest(2)} == hot
        )
        assert [entry.hits for entry in catalogue.hottest(4)] == [1, 1, 0, 0]
        await asyncio.to_thread(engine.close)


async def test_what_an_agent_did_not_hear_is_told_when_it_is_back(tmp_path: Path) -> None:
    async with regions_here((US,), tmp_path) as world:
        tier = tier_of(world, US)
        await world.agents[US]._server.stop()  # type: ignore[union-attr]  # it was started
        with pytest.raises(TierUnavailable):
            await asyncio.to_thread(tier.set, [record(1)])
        assert tier.stats()["untold_blocks"] == 1
        await asyncio.to_thread(tier.close)


async def test_an_agent_with_another_secret_is_not_believed(tmp_path: Path) -> None:
    async with regions_here((US,), tmp_path) as world:
        tier = RegionsTier(Seal("x" * 40, US), world.agents[US].url, MODEL)
        with pytest.raises(TierUnavailable, match="answered 401, signed: False"):
            await asyncio.to_thread(tier.get, [block(1).key])
        await asyncio.to_thread(tier.close)


async def test_a_region_without_blocks_is_warmed_by_itself_at_the_rate_it_may(
    tmp_path: Path,
) -> None:
    settings = {"warm_blocks": 8, "rate_bytes_per_s": 40_000.0}
    async with regions_here((US, EU), tmp_path, **settings) as world:
        for proxy in world.proxies.values():
            proxy.stall()
        entries = await world.write(US, [block(number) for number in range(40)])
        for entry in entries[20:28]:
            entry.hits = 9
        world.agents[US].node.peers[EU].outbox.take(100, 1 << 30)  # nothing is told by itself
        started_s = asyncio.get_running_loop().time()
        world.delay(0.0)
        arrived = world.stores[EU].arrived
        await eventually("all came", lambda: len(arrived) == 40)
        first = sorted(arrived, key=lambda key: arrived[key])[:8]
        assert set(first) == {entry.key for entry in entries[20:28]}
        # 160 kB at 40 kB/s, one second of which is in advance.
        assert max(arrived.values()) - started_s > 2.0
