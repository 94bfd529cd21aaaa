"""The scaling guide's `MultiRegionCache`: this region's cache first, then the others over the wire.

Refuses what the guide's snippet does by accident: to take an empty value for a miss, to call two
engines in one process two regions, and to add every dead region's timeout to every miss. Others are
asked at once and under one deadline; a hit is kept here; writes and deletes spread by themselves.

    async with MultiRegionCache(["us-east", "eu-west"]) as cache:   # [regions] names this one
        await cache.set("greeting", "hello")
        await cache.get("greeting")

Values are what `engine.set` takes. The newest write wins, in every region; a delete is never undone
by what is older (`versions.py`). KV blocks take another way: `tier.py`, behind a replica's engine.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from xxhash import xxh3_64_intdigest

from bul.blocks.prefix import Buffer
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.value_tiers import from_payload, tier_key, to_payload
from bul.cache.values import check_key, decode, encode
from bul.clock import Clock
from bul.config import KVCacheConfig, RegionsConfig, load_settings
from bul.errors import ConfigError
from bul.regions import messages as m
from bul.regions.agent import RegionAgent
from bul.regions.catalogue import Entry
from bul.regions.journal import SqliteJournal

__all__ = ["MultiRegionCache", "RemoteRegion"]

VALUES: Final = blake2b(b"general values", digest_size=32, person=b"bul-regions").digest()
"""In place of a model: `clear` retires it."""
MISSING: Final = object()


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteRegion:
    """Another region's values, as the guide's `remote_caches[region]`."""

    region: str
    agent: RegionAgent

    async def get(self, key: str, default: object = None) -> object:
        """Asked of that region alone; not kept here."""
        body = m.pack(m.Get([tier_key(check_key(key))]))
        answer = await self.agent.clients[self.region].ask(
            "get", body, self.agent.config.deadline_s
        )
        message, records = m.unpack(answer, m.Blocks)
        for _, payload in m.payloads(message.items, records):
            stored = None if payload is None else from_payload(payload, 0.0)
            if stored is not None:
                return decode(stored)
        return default


class MultiRegionCache:
    """regions: names of the world's regions; addresses and this one's name are in [regions].

    config: of this region's engine. settings: [regions], read from bul.toml and the environment if
    left out. Raises ConfigError. Use it in one event loop; it starts with the first call.
    """

    def __init__(
        self,
        regions: Sequence[str],
        *,
        config: KVCacheConfig | None = None,
        settings: RegionsConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.regions = list(regions)
        settings = load_settings().regions if settings is None else settings
        config = config or KVCacheConfig()
        self.local_cache = UltraAdaptiveKVCacheEngine(config, clock=clock)
        try:
            self.agent = RegionAgent(
                _chosen(settings, self.regions),
                _EngineStore(self.local_cache),
                _journal(config, settings.name),
                clock,
            )
        except ConfigError:
            self.local_cache.close()
            raise
        self.remote_caches: Mapping[str, RemoteRegion] = {
            region: RemoteRegion(region, self.agent) for region in self.agent.clients
        }
        self._starting = asyncio.Lock()
        self._started = False

    async def get(self, key: str, default: object = None) -> object:
        """The value here, else the newest of what the other regions have; that is kept here."""
        await self.start()
        value = await self.local_cache.get(key, MISSING)
        if value is not MISSING:
            return value
        name = tier_key(key)
        found = await self.agent.fetcher.fetch([name], at_once=True)
        if name not in found:
            return default
        stored = from_payload(found[name][1], 0.0)
        return default if stored is None else decode(stored)

    async def set(self, key: str, value: object) -> bool:
        """Keep it here and tell the others; False if it is too large, then it is kept nowhere.

        A value of more than 32 MiB stays in this region.
        """
        await self.start()
        node = self.agent.node
        payload = to_payload(encode(value))
        async with node.writing:
            kept = await self.local_cache.set(key, value)
            stamped = node.state.write(_entry(key, payload), node.wall_ms()) if kept else None
        if stamped is None:
            await node.erase("key", tier_key(key))
            return False
        await node.told(stamped)
        return True

    async def delete(self, key: str) -> bool:
        """Forget it everywhere; whether this region had it."""
        await self.start()
        had = await self.local_cache.delete(key)
        await self.agent.node.erase("key", tier_key(key))
        return had

    async def clear(self) -> None:
        """Forget all values everywhere, and this region's blocks."""
        await self.start()
        await self.local_cache.clear()
        await self.agent.node.erase("model", VALUES)

    async def start(self) -> None:
        """Listen for the other regions and begin to talk. Idempotent."""
        if self._started:
            return
        async with self._starting:
            if not self._started:
                await self.agent.start()
                self._started = True

    async def close(self) -> None:
        """Stop talking, write what is queued, close the engine."""
        if self._started:
            await self.agent.stop()
        await asyncio.to_thread(self.local_cache.close)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class _EngineStore:
    """The engine's general values, by their text keys."""

    def __init__(self, engine: UltraAdaptiveKVCacheEngine) -> None:
        self._engine = engine

    async def read(self, entries: Sequence[Entry]) -> list[Buffer | None]:
        return [await self._read(entry) for entry in entries]

    async def _read(self, entry: Entry) -> Buffer | None:
        value = await self._engine.get(entry.name, MISSING)
        return None if value is MISSING else to_payload(encode(value))

    async def write(self, blocks: Sequence[tuple[Entry, Buffer]]) -> list[bool]:
        kept = []
        for entry, payload in blocks:
            stored = from_payload(payload, 0.0)
            sound = stored is not None and tier_key(entry.name) == entry.key
            kept.append(
                sound and stored is not None and await self._engine.set(entry.name, decode(stored))
            )
        return kept

    async def delete(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            await self._engine.delete(entry.name)


def _entry(key: str, payload: bytes) -> Entry:
    return Entry(
        key=tier_key(key),
        version=0,
        model=VALUES,
        size=len(payload),
        checksum=xxh3_64_intdigest(payload),
        name=key,
    )


def _chosen(settings: RegionsConfig, regions: Sequence[str]) -> RegionsConfig:
    """`settings` with the peers that are named. Raises ConfigError for one without an address."""
    urls = settings.peer_urls
    others = [region for region in regions if region != settings.name]
    unknown = [region for region in others if region not in urls]
    if unknown:
        hint = f'peers = ["{unknown[0]}=http://HOST:8010"] in [regions]'
        raise ConfigError(f"region {unknown[0]!r} has no address", hint=hint)
    return dataclasses.replace(settings, peers=tuple(f"{one}={urls[one]}" for one in others))


def _journal(config: KVCacheConfig, region: str) -> SqliteJournal | None:
    """Beside the values, if those outlive the process."""
    if not config.enable_persistence:
        return None
    return SqliteJournal(Path(config.persistence_dir or ".bul/cache") / f"regions-{region}.sqlite")
