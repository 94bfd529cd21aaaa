"""Two whole regions on one machine: they share what they compute, and stand in for each other."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from bul.cli.ask import Answer, ask, model_id
from bul.testing.region_process import BulProcess, bul_process, region_process
from bul.testing.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.steady]

PROMPT = [{"role": "user", "content": "Tell me of the sea between two regions. " * 40}]
US, EU = "us-east", "eu-west"


class World:
    def __init__(self, process: BulProcess, folder: Path, client: httpx.AsyncClient) -> None:
        self.process = process
        self.folder = folder
        self.client = client
        self.urls: dict[str, str] = process.said("ready")[0]["urls"]

    async def ask(self, region: str) -> Answer:
        url = self.urls[region]
        model = await model_id(self.client, url)
        return await ask(self.client, url, PROMPT, model=model, max_tokens=4)

    async def regions(self, *arguments: str) -> Any:
        """`bul regions ARGUMENTS --json`."""
        async with bul_process(["regions", *arguments, "--json"], self.folder) as running:
            code = await running.ended()
        assert code == 0, running.errors
        return running.events[0]

    async def blocks(self, region: str) -> int:
        """That the region has, as its agent knows."""
        status = await self.regions("status")
        return int(status[region]["present"])

    async def explained(self, region: str) -> dict[str, Any]:
        body = {"model": await model_id(self.client, self.urls[region]), "messages": PROMPT}
        response = await self.client.post(f"{self.replica(region)}/cache/explain", json=body)
        return dict(msgspec.json.decode(response.content))

    def replica(self, region: str) -> str:
        said = [one for one in self.process.said("replica_ready") if one["region"] == region]
        return str(said[-1]["url"])

    def replica_pid(self, region: str) -> int:
        said = [one for one in self.process.said("replica_started") if one["region"] == region]
        return int(said[-1]["pid"])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    flags = ("--regions", f"{US},{EU}", "--replicas", "1", "--wan-rtt-ms", "80", "--shared")
    async with region_process(tmp_path, *flags) as process:
        await process.wait_for("ready")
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            yield World(process, tmp_path, client)


async def test_two_regions_share_what_they_computed_and_stand_in_for_each_other(
    world: World,
) -> None:
    cold = await world.ask(US)
    assert cold.cached_tokens == 0
    first = await world.blocks(EU)

    async def arrived() -> bool:
        return await world.blocks(EU) == await world.blocks(US) > 18

    await eventually(f"news arrive ({first})", arrived)
    warm = await world.ask(EU)
    assert warm.cached_tokens >= warm.prompt_tokens - 64
    assert warm.text == cold.text

    await eventually("the live page shows the other region", lambda: _is_shown(world))
    await _purge(world)
    await _fail_over(world)


async def _is_shown(world: World) -> bool:
    """On the page of a region's own router, as its door passes it on."""
    page = (await world.client.get(f"{world.urls[US]}/dashboard/data")).json()
    return [(one["name"], one["state"]) for one in page["regions"]] == [(EU, "up")]


async def _purge(world: World) -> None:
    """What is retired in one region is computed again in both, although RAM had it."""
    identity = (await world.explained(EU))["identity"]
    await world.regions("purge", "--model", identity, "--region", EU)

    async def gone() -> bool:
        return await world.blocks(US) == await world.blocks(EU) == 0

    await eventually("all is purged", gone)
    await asyncio.sleep(1.0)  # replicas look for purges twice a second
    again = await world.ask(US)
    assert again.cached_tokens == 0


async def _fail_over(world: World) -> None:
    """While a region has no replica, its door sends to the other one: nobody is refused."""
    body = {"model": "bul", "messages": PROMPT, "max_tokens": 4}
    body["model"] = await model_id(world.client, world.urls[US])
    os.kill(world.replica_pid(US), signal.SIGKILL)
    served: set[str] = set()
    for _ in range(30):
        url = f"{world.urls[US]}/v1/chat/completions"
        response = await world.client.post(url, json=body)
        assert response.status_code == 200, response.text
        served |= set(response.headers.get_list("x-bul-replica"))
    # The door names whom it asked: its own region's router, and the way to the other one's.
    assert len(served) == 2, served
