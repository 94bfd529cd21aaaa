"""Agents over real HTTP: news, repairs, purges, warm starts, partitions, dead regions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bul.regions.agent import RegionAgent
from bul.regions.wan import Faults
from bul.testing.region_agents import RegionsHere, block, regions_here
from bul.testing.waiting import eventually

pytestmark = pytest.mark.slow
US, EU, AP = "us-east", "eu-west", "ap-south"


async def reachable(world: RegionsHere) -> None:
    def all_reach() -> bool:
        return all(
            peer["reachable"] and peer["synced"]
            for agent in world.agents.values()
            for peer in agent.status()["peers"].values()
        )

    await eventually("all regions reach each other", all_reach)


def keys(world: RegionsHere, region: str) -> set[bytes]:
    return set(world.stores[region].blocks)


async def test_what_one_region_computes_the_others_soon_have(tmp_path: Path) -> None:
    async with regions_here((US, EU, AP), tmp_path) as world:
        await reachable(world)
        await world.write(US, [block(number) for number in range(20)])
        await eventually(
            "all have it", lambda: keys(world, EU) == keys(world, AP) == keys(world, US)
        )
        assert world.stores[EU].blocks == world.stores[US].blocks


async def test_only_missing_blocks_cross_the_link(tmp_path: Path) -> None:
    async with regions_here((US, EU), tmp_path) as world:
        await reachable(world)
        await world.write(US, [block(number, 65_536) for number in range(10)])
        await world.write(EU, [block(number, 65_536) for number in range(10)])
        await eventually(
            "news are out",
            lambda: (
                not any(
                    agent.node.peers[other].outbox or agent.node.peers[other].pushing
                    for agent, other in both(world)
                )
            ),
        )
        await asyncio.gather(*(agent.sync() for agent in world.agents.values()))
        pushed = [agent.node.peers[other].pushed_blocks_total for agent, other in both(world)]
        assert sum(pushed) <= 10
        assert keys(world, EU) == keys(world, US)


def both(world: RegionsHere) -> list[tuple[RegionAgent, str]]:
    return [(world.agents[US], EU), (world.agents[EU], US)]


@pytest.mark.parametrize("kind", ["key", "tenant", "model"])
async def test_what_is_deleted_in_one_region_is_gone_in_all(tmp_path: Path, kind: str) -> None:
    async with regions_here((US, EU), tmp_path) as world:
        await reachable(world)
        dead = block(1, tenant=b"tenant-1", model=b"d" * 32)
        await world.write(US, [dead, block(2)])
        await eventually("both are there", lambda: len(keys(world, EU)) == 2)
        target = {"key": dead.key, "tenant": dead.tenant, "model": dead.model}[kind]
        await world.agents[EU].node.erase(kind, target)  # type: ignore[arg-type]  # one of three
        await eventually("it is gone", lambda: keys(world, US) == {block(2).key})
        assert keys(world, EU) == {block(2).key}


async def test_a_partition_heals_although_the_news_overflowed(tmp_path: Path) -> None:
    async with regions_here((US, EU), tmp_path, queue_keys_max=16) as world:
        await reachable(world)
        await world.write(US, [block(0)])
        await eventually("the first one is there", lambda: len(keys(world, EU)) == 1)
        world.partition()
        await eventually(
            "silence is noticed",
            lambda: all(
                agent.node.peers[other].link.breaker.is_open for agent, other in both(world)
            ),
        )
        await world.write(US, [block(number) for number in range(1, 101)])
        await world.agents[EU].node.erase("key", block(0).key)
        assert len(keys(world, US)) == 101
        world.delay(0.0)
        await eventually("all came", lambda: len(keys(world, EU)) == 100)
        await eventually("the dead is gone", lambda: keys(world, US) == keys(world, EU))
        assert world.agents[US].node.peers[EU].outbox.dropped_total > 0


async def test_a_new_region_is_warmed_with_the_hottest_first(tmp_path: Path) -> None:
    async with regions_here((US, EU), tmp_path) as world:
        world.proxies[EU, US].stall()
        world.proxies[US, EU].stall()
        entries = await world.write(US, [block(number) for number in range(100)])
        for entry in entries[90:]:
            entry.hits = 5
        talk = world.agents[EU]._replicator._talk
        world.delay(0.0)

        async def ask(path: str, body: bytes) -> bytes:
            return await world.agents[EU].clients[US].ask(path, body, 5.0)

        assert await talk.warm(US, ask, 10) == 10
        assert keys(world, EU) >= {entry.key for entry in entries[90:]}


async def test_a_hit_elsewhere_is_kept_here(tmp_path: Path) -> None:
    async with regions_here((US, EU), tmp_path) as world:
        await reachable(world)
        entry = block(1)
        await world.write(US, [entry])
        await eventually("it is there", lambda: entry.key in keys(world, EU))
        world.stores[EU].blocks.clear()
        found = await world.agents[EU].fetcher.fetch([entry.key, block(2).key])
        assert {key: bytes(data) for key, (_, data) in found.items()} == {
            entry.key: world.stores[EU].payload(entry)
        }
        assert keys(world, EU) == {entry.key}


async def test_a_silent_region_is_hedged_and_then_not_asked_at_all(tmp_path: Path) -> None:
    async with regions_here((US, EU, AP), tmp_path) as world:
        await reachable(world)
        entry = block(1)
        await world.write(AP, [entry])
        await eventually("it is there", lambda: entry.key in keys(world, US))
        world.proxies[US, EU].stall()
        for _ in range(3):
            world.stores[US].blocks.clear()
            assert await world.agents[US].fetcher.fetch([entry.key])
        await eventually(
            "its breaker opens", lambda: world.agents[US].node.peers[EU].link.breaker.is_open
        )
        asked = world.agents[US].fetcher.asked_total
        assert not await world.agents[US].fetcher.fetch([block(9).key])
        assert world.agents[US].fetcher.asked_total == asked + 1


async def test_bytes_that_were_spoiled_on_the_way_are_never_kept(tmp_path: Path) -> None:
    async with regions_here((US, EU), tmp_path) as world:
        await reachable(world)
        for proxy in world.proxies.values():
            proxy.cut()
            proxy.to_server = Faults(flip_at=3000)
        await world.write(US, [block(number) for number in range(50)])
        await asyncio.sleep(1.0)
        for entry in world.agents[EU].node.state.catalogue:
            assert world.stores[EU].blocks[entry.key] == world.stores[EU].payload(entry)
        world.delay(0.0)
        for proxy in world.proxies.values():
            proxy.cut()
        await eventually("all came well", lambda: len(keys(world, EU)) == 50)
        assert world.stores[EU].blocks == world.stores[US].blocks


async def test_a_region_remembers_its_graves_across_a_restart(tmp_path: Path) -> None:
    async with regions_here((US, EU), tmp_path) as world:
        await world.write(US, [block(1), block(2)])
        await world.agents[US].node.erase("key", block(1).key)
    async with regions_here((US, EU), tmp_path) as world:
        state = world.agents[US].node.state
        assert {entry.key for entry in state.catalogue} == {block(2).key}
        assert [grave.target for grave in state.graves.all()] == [block(1).key]
