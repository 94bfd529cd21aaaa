"""`bul demo --cold-replica`: what one replica computed, another one finds in the shared cache.

Refuses to flatter: each replica has a disk folder of its own, which for the second one is empty,
and the second one starts when the first has stopped computing; nothing is waited for but the writes
that were already queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bul.cli.demo_play import Played, play, play_again
from bul.cli.demo_report import ColdReplica, Report, Turn
from bul.cli.demo_restart import tier_stats, written
from bul.cli.events import EventLog
from bul.cli.region import Region
from bul.config import Settings
from bul.errors import BulError

__all__ = ["cold_replica"]


async def cold_replica(
    settings: Settings,
    events: EventLog,
    count: int,
    *,
    folder: Path,
    urls: Sequence[str] = (),
    key: str = "",
) -> Report:
    """Play on one replica, ask another. Raises BulError.

    settings: with the address of the shared cache. folder: of the state; the disks are temporary
    folders in it. urls: two replicas that run elsewhere, in place of two of our own; key: for
    their API.
    """
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder, prefix="cold-replica-") as disks:
        async with contextlib.AsyncExitStack() as stack:

            async def replica(number: int) -> str:
                if urls:
                    return urls[number]
                own = Path(disks) / str(number)
                return await stack.enter_async_context(_replica(settings, events, own))

            first = await replica(0)
            played = await play([first], count, key=key)
            await written([first], "shared", key=key)
            second = await replica(1)
            facts, turns = await _ask(second, played, key)
    return Report(
        engine=settings.serve.engine,
        model=played.model,
        conversations=len(played.last),
        turns=played.turns + turns,
        seconds=time.monotonic() - start_s,
        cold_replica=facts,
    )


async def _ask(url: str, played: Played, key: str) -> tuple[ColdReplica, tuple[Turn, ...]]:
    [before] = await tier_stats([url], key=key)
    if before["ram"]["blocks"] or before.get("disk", {}).get("blocks"):
        raise BulError(f"the replica at {url} is not cold", hint="start one on an empty disk")
    turns = await play_again([url], played, key=key)
    [after] = await tier_stats([url], key=key)
    if "shared" not in after:
        raise BulError(f"the replica at {url} has no shared cache", hint="give it --shared-url")
    facts = ColdReplica(
        blocks_at_start=0,
        shared_hit_tokens=int(after["shared"]["hit_tokens_total"]),
        disk_hit_tokens=int(after.get("disk", {}).get("hit_tokens_total", 0)),
    )
    return facts, turns


@contextlib.asynccontextmanager
async def _replica(settings: Settings, events: EventLog, folder: Path) -> AsyncIterator[str]:
    """A region of one replica, whose state and disk are in `folder`; its replica's URL."""
    await asyncio.to_thread(folder.mkdir, mode=0o700)
    cache = dataclasses.replace(settings.cache, enable_persistence=True, persistence_dir="")
    changed = ("cache.persistence_dir", "cache.enable_persistence")
    origins = {key: value for key, value in settings.origins.items() if key not in changed}
    region = Region(
        dataclasses.replace(
            settings,
            cache=cache,
            up=dataclasses.replace(settings.up, replicas=1, shared=False),
            origins=origins | {"cache.enable_persistence": "--cold-replica"},
        ),
        events,
        folder,
    )
    try:
        await region.start()
        [replica] = await region.wait_ready()
        yield replica.url
    finally:
        await region.close()
