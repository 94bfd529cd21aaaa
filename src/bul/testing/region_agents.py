"""Agents of several regions in this process, over real HTTP, each pair through a fault proxy.

Refuses fixed ports, and to share anything but the wire: each region has a store and a journal file
of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from bul.blocks.prefix import Buffer
from bul.config.regions import RegionsConfig
from bul.regions.agent import RegionAgent
from bul.regions.catalogue import Entry
from bul.regions.journal import SqliteJournal
from bul.regions.wan import FaultProxy, Faults

__all__ = ["SECRET", "MemoryStore", "RegionsHere", "block", "free_port", "regions_here"]

SECRET = "a secret of these tests, long enough"  # noqa: S105 - of tests


def block(number: int, size: int = 4096, *, tenant: bytes = b"", model: bytes = b"m" * 32) -> Entry:
    """An entry without a version; `payload` of it is made from its key."""
    key = blake2b(b"block %d" % number, digest_size=32).digest()
    return Entry(key=key, version=0, model=model, tenant=tenant, tokens=64, size=size)


class MemoryStore:
    """Bytes by key."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.arrived: dict[bytes, float] = {}

    def put(self, entry: Entry) -> None:
        """As a replica would, with bytes made from the key."""
        self.blocks[entry.key] = self.payload(entry)

    @staticmethod
    def payload(entry: Entry) -> bytes:
        return (entry.key * (entry.size // 32 + 1))[: entry.size]

    async def read(self, entries: Sequence[Entry]) -> list[Buffer | None]:
        return [self.blocks.get(entry.key) for entry in entries]

    async def write(self, blocks: Sequence[tuple[Entry, Buffer]]) -> list[bool]:
        now_s = asyncio.get_running_loop().time()
        for entry, data in blocks:
            self.blocks[entry.key] = bytes(data)
            self.arrived[entry.key] = now_s
        return [True] * len(blocks)

    async def delete(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self.blocks.pop(entry.key, None)


class RegionsHere:
    """agents and stores by region; proxies by (from, to)."""

    def __init__(self) -> None:
        self.agents: dict[str, RegionAgent] = {}
        self.stores: dict[str, MemoryStore] = {}
        self.proxies: dict[tuple[str, str], FaultProxy] = {}

    async def write(self, region: str, entries: Sequence[Entry]) -> list[Entry]:
        """Blocks are computed in `region`."""
        for entry in entries:
            self.stores[region].put(entry)
        return await self.agents[region].node.announce(entries)

    def delay(self, rtt_s: float) -> None:
        """Of every link."""
        for proxy in self.proxies.values():
            proxy.to_client = proxy.to_server = Faults(delay_s=rtt_s / 2)

    def partition(self) -> None:
        """Nobody hears anybody; connections hang."""
        for proxy in self.proxies.values():
            proxy.stall()


@contextlib.asynccontextmanager
async def regions_here(
    names: Sequence[str], folder: Path, *, rtt_s: float = 0.0, **settings: Any
) -> AsyncIterator[RegionsHere]:
    """All of them, talking."""
    world = RegionsHere()
    ports = {name: await free_port() for name in names}
    async with contextlib.AsyncExitStack() as stack:
        for a, b in itertools.permutations(names, 2):
            proxy = FaultProxy("127.0.0.1", ports[b])
            world.proxies[a, b] = await stack.enter_async_context(proxy)
        world.delay(rtt_s)
        for name in names:
            peers = tuple(f"{b}={world.proxies[a, b].url}" for a, b in world.proxies if a == name)
            options = {"compare_interval_s": 60.0, "warm_blocks": 0} | settings
            config = RegionsConfig(
                name=name, port=ports[name], peers=peers, peer_secret=SECRET, **options
            )
            journal = SqliteJournal(folder / name / "regions.sqlite")
            stack.callback(journal.close)
            world.stores[name] = MemoryStore()
            agent = world.agents[name] = RegionAgent(config, world.stores[name], journal)
            await agent.start()
            stack.push_async_callback(agent.stop)
        yield world


async def free_port() -> int:
    """One that nobody listens on right now."""
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
