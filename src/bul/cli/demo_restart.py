"""`bul demo --restart`: every replica is killed, and what was asked before is asked again.

Refuses to flatter: replicas swap their conversations, so that nothing but the disk can have what
they are asked for; and nothing is waited for but the writes that were already queued.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from bul.cli.ask import cache_stats
from bul.cli.demo_play import Played, client_with, play_again
from bul.cli.demo_report import Restart, Turn
from bul.cli.region import Region

__all__ = ["restart", "tier_stats", "written"]

WRITTEN_S = 10.0
WRITTEN_POLL_S = 0.05


async def restart(region: Region, played: Played) -> tuple[Restart, tuple[Turn, ...]]:
    """Kill, wait for their return, ask again. Raises BulError."""
    before = await region.driver.replicas()
    await written([replica.url for replica in before], "disk")
    start_s = time.monotonic()
    killed = await region.crash()
    replicas = await region.wait_ready()
    back_s = time.monotonic() - start_s
    urls = [replica.url for replica in replicas]
    turns = await play_again([*urls[1:], *urls[:1]], played)
    loaded = [stats["disk"]["hit_tokens_total"] for stats in await tier_stats(urls)]
    facts = Restart(
        replicas_killed=killed, back_s=round(back_s, 2), disk_hit_tokens=int(sum(loaded))
    )
    return facts, turns


async def written(urls: Sequence[str], tier: str, *, key: str = "") -> None:
    """Until the replicas have written what they had queued for `tier`, or for `WRITTEN_S`."""
    deadline_s = time.monotonic() + WRITTEN_S
    while time.monotonic() < deadline_s:
        if not any(
            stats.get(tier, {}).get("queue_bytes") for stats in await tier_stats(urls, key=key)
        ):
            return
        await asyncio.sleep(WRITTEN_POLL_S)


async def tier_stats(urls: Sequence[str], *, key: str = "") -> list[dict[str, dict[str, float]]]:
    """Each replica's figures by tier. Raises BulError."""
    async with client_with(key) as client:
        return [await cache_stats(client, url) for url in urls]
