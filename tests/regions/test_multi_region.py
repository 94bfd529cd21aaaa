"""MultiRegionCache: local first, then all others under one deadline; writes and deletes spread."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from bul.config import KVCacheConfig, RegionsConfig
from bul.errors import ConfigError
from bul.regions.multi_region import MultiRegionCache
from bul.regions.node import PeerFailed
from bul.regions.wan import FaultProxy
from bul.testing.region_agents import SECRET, free_port
from bul.testing.waiting import eventually

NAMES = ("us-east", "eu-west", "ap-south")


class World:
    def __init__(self, caches: dict[str, MultiRegionCache], proxies: dict[str, FaultProxy]):
        self.caches = caches
        self.proxies = proxies
        """By the region that they lead to."""

    def __getitem__(self, name: str) -> MultiRegionCache:
        return self.caches[name]


@contextlib.asynccontextmanager
async def world(names: Sequence[str] = NAMES, **settings: Any) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        ports = {name: await free_port() for name in names}
        proxies = {
            name: await stack.enter_async_context(FaultProxy("127.0.0.1", ports[name]))
            for name in names
        }
        caches = {}
        for name in names:
            peers = tuple(f"{other}={proxies[other].url}" for other in names if other != name)
            config = RegionsConfig(
                name=name, port=ports[name], peers=peers, peer_secret=SECRET, **settings
            )
            cache = caches[name] = MultiRegionCache(names, settings=config)
            await stack.enter_async_context(cache)
        yield World(caches, proxies)


@pytest.mark.slow
async def test_a_value_of_any_kind_is_a_hit_in_every_region() -> None:
    values = [b"", "", 0, False, [], {}, 0.0, {"a": [1, None]}, b"bytes"]
    async with world(NAMES[:2]) as here:
        for number, value in enumerate(values):
            await here["us-east"].set(f"key {number}", value)
        for number, value in enumerate(values):
            assert await here["eu-west"].get(f"key {number}", "a miss") == value


@pytest.mark.slow
async def test_values_and_deletes_spread_by_themselves_and_the_newest_wins() -> None:
    async with world() as here:
        await here["us-east"].set("key", "first")
        await here["us-east"].set("array", np.arange(6).reshape(2, 3))
        for name in NAMES:
            await eventually("it spreads", lambda n=name: _has(here[n], "key", "first"))  # type: ignore[misc]  # a bound loop variable
        await here["ap-south"].set("key", "second")
        for name in NAMES:
            await eventually("the newest wins", lambda n=name: _has(here[n], "key", "second"))  # type: ignore[misc]  # a bound loop variable
        assert np.array_equal(await here["eu-west"].get("array"), np.arange(6).reshape(2, 3))  # type: ignore[arg-type]  # an array
        assert await here["eu-west"].delete("key")
        for name in NAMES:
            await eventually("the delete spreads", lambda n=name: _has(here[n], "key", None))  # type: ignore[misc]  # a bound loop variable
        assert await here["us-east"].get("key") is None
        await here["us-east"].clear()
        await eventually("all is gone", lambda: _has(here["eu-west"], "array", None))


async def _has(cache: MultiRegionCache, key: str, value: object) -> bool:
    found = await cache.local_cache.get(key)
    return found is None if value is None else bool(found == value)


@pytest.mark.slow
async def test_a_region_that_was_cut_off_does_not_bring_back_what_was_deleted() -> None:
    async with world(NAMES[:2]) as here:
        await here["us-east"].set("key", "old")
        await eventually("it spreads", lambda: _has(here["eu-west"], "key", "old"))
        for proxy in here.proxies.values():
            proxy.stall()
        await here["us-east"].delete("key")
        assert await here["eu-west"].get("key") == "old"
        for proxy in here.proxies.values():
            proxy.heal()
        await eventually("it is gone", lambda: _has(here["eu-west"], "key", None))
        assert await here["us-east"].get("key") is None


class SerialLoop:
    """The guide's literal loop, over the same wire: one region after another, `if result`."""

    def __init__(self, cache: MultiRegionCache) -> None:
        self.cache = cache
        self.timeouts = 0

    async def get(self, key: str) -> object:
        result = await self.cache.local_cache.get(key)
        if result:
            return result
        for remote in self.cache.remote_caches.values():
            try:
                result = await remote.get(key)
            except PeerFailed:
                self.timeouts += 1
            if result:
                await self.cache.local_cache.set(key, result)
                return result
        return None


@pytest.mark.slow
async def test_dead_regions_cost_each_miss_of_the_guides_loop_their_timeouts_not_ours() -> None:
    async with world(deadline_s=0.3) as here:
        cache = here["us-east"]
        await cache.set("zero", 0)
        for name in NAMES[1:]:
            here.proxies[name].stall()
        peers = cache.agent.node.peers.values()
        await eventually("noticed", lambda: all(p.link.breaker.is_open for p in peers))
        asked = cache.agent.fetcher.asked_total
        serial = SerialLoop(cache)
        for number in range(3):
            assert await cache.get(f"missing {number}") is None
            assert await serial.get(f"missing {number}") is None
        assert cache.agent.fetcher.asked_total == asked
        assert serial.timeouts == 6
        # And its `if result` takes what is here for a miss.
        assert await serial.get("zero") is None
        assert await cache.get("zero") == 0


def test_a_region_without_an_address_or_a_secret_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="'eu-west' has no address"):
        MultiRegionCache(["us-east", "eu-west"], settings=RegionsConfig(name="us-east"))
    peers = ("eu-west=http://127.0.0.1:1",)
    with pytest.raises(ConfigError, match="need a secret"):
        MultiRegionCache(["eu-west"], settings=RegionsConfig(name="us-east", peers=peers))
    with pytest.raises(ConfigError, match="has no name"):
        MultiRegionCache(["eu-west"], settings=RegionsConfig(peers=peers))


async def test_what_is_too_large_is_kept_nowhere() -> None:
    small = KVCacheConfig(ram_bytes_max=1 << 20)
    settings = RegionsConfig(name="us-east", port=0, peer_secret=SECRET)
    async with MultiRegionCache(["us-east"], config=small, settings=settings) as cache:
        assert await cache.set("key", b"small")
        assert not await cache.set("key", bytes(1 << 20))
        assert await cache.get("key") is None
