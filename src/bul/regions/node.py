"""One region: its judgement, its store and its journal kept in step. The same in a simulator.

Refuses to promise what the journal has not kept yet, to store bytes that the catalogue does not
want, and to wait for anything but its store and its journal. Time comes from two callables.

What it says to others is in `talk.py`, what it answers them in `answers.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

from xxhash import xxh3_64_intdigest

from bul.blocks.prefix import Buffer
from bul.regions import messages as m
from bul.regions.catalogue import Entry
from bul.regions.encoding import CHOICES, Benefit
from bul.regions.order import Link
from bul.regions.outbox import Lags, Outbox, Pace
from bul.regions.state import Change, RegionState
from bul.regions.versions import Grave, GraveKind

__all__ = ["Ask", "Journal", "Peer", "PeerFailed", "RegionNode", "Store", "is_payload_of"]

EXPECT_S: Final = 10.0
"""A block that one region has promised is not asked of another for so long."""

Ask = Callable[[str, bytes], Awaitable[bytes]]


class PeerFailed(Exception):
    """The other region did not answer, not in time, or not truthfully."""


def is_payload_of(entry: Entry, payload: Buffer) -> bool:
    """Whether these may be its bytes; a store keeps values by key, whatever their version."""
    if len(payload) != entry.size:
        return False
    return bool(entry.tokens) or xxh3_64_intdigest(payload) == entry.checksum


class Store(Protocol):
    """Where the region's bytes lie. Never raises for its own faults."""

    async def read(self, entries: Sequence[Entry]) -> list[Buffer | None]: ...

    async def write(self, blocks: Sequence[tuple[Entry, Buffer]]) -> list[bool]:
        """Whether each is there now. A value replaces the one before."""
        ...

    async def delete(self, entries: Sequence[Entry]) -> None: ...


class Journal(Protocol):
    """Keeps changes across a crash; durable ones across a power cut."""

    async def write(self, changes: Sequence[Change]) -> None: ...


@dataclasses.dataclass(slots=True)
class Peer:
    """What this region keeps about one other. Counters are of blocks and payload bytes."""

    link: Link
    outbox: Outbox
    pace: Pace
    lags: Lags = dataclasses.field(default_factory=Lags)
    benefit: Benefit = dataclasses.field(default_factory=Benefit)
    pushing: int = 0
    pushed_blocks_total: int = 0
    pushed_bytes_total: int = 0
    pulled_blocks_total: int = 0
    pulled_bytes_total: int = 0
    reconciled_total: int = 0


class RegionNode:
    """One event loop. peers: by region, the static list; nobody else is ever spoken to."""

    def __init__(
        self,
        state: RegionState,
        peers: dict[str, Peer],
        store: Store,
        journal: Journal,
        *,
        wall_ms: Callable[[], int],
        now_s: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.state = state
        self.peers = peers
        self.store = store
        self.damaged_total = 0
        self.on_news: Callable[[], None] = _nobody
        """Called when an outbox has got something."""
        self._journal = journal
        self.wall_ms = wall_ms
        self.now_s = now_s
        self.pause = pause
        self._expected: dict[bytes, tuple[int, str, float]] = {}
        self.writing = asyncio.Lock()
        """Held while the store is written, so that catalogue and bytes go in step."""

    # what happens here

    async def announce(self, entries: Iterable[Entry]) -> list[Entry]:
        """Written in this region: told to all others. Their bytes are in the store, or soon."""
        stamped = [self.state.write(entry, self.wall_ms()) for entry in entries]
        await self.told(*stamped)
        return stamped

    async def told(self, *entries: Entry) -> None:
        """These have their version: tell all others of them, but for what no message can hold."""
        for entry in entries:
            if entry.size <= m.PAYLOAD_BYTES_MAX:
                self._tell_all(entry)
        await self.settle()
        self.on_news()

    async def erase(self, kind: GraveKind, target: bytes) -> Grave:
        """Delete a key, purge a tenant, retire a model: here now, elsewhere as soon as may be."""
        grave = self.state.delete(kind, target, self.wall_ms())
        for peer in self.peers.values():
            peer.outbox.bury(grave)
        await self.settle()
        self.on_news()
        return grave

    async def settle(self) -> None:
        """Keep what has changed, then drop the bytes of what died."""
        changes, self.state.changes = self.state.changes, []
        if changes:
            await self._journal.write(changes)
        unwanted, self.state.unwanted = self.state.unwanted, []
        if unwanted:
            async with self.writing:
                get = self.state.catalogue.get
                await self.store.delete([entry for entry in unwanted if get(entry.key) is None])

    async def take_in(self, found: Iterable[tuple[m.Item, Buffer | None]]) -> int:
        """Keep blocks that came from another region, if they are wanted; how many.

        Raises MessageInvalid behind the last sound one; those before it are kept.
        """
        fresh: list[tuple[Entry, Buffer]] = []
        broken: m.MessageInvalid | None = None
        try:
            for item, payload in found:
                entry = m.entry_of(item, present=True)
                self._expected.pop(item.key, None)
                if payload is None or not is_payload_of(entry, payload):
                    self.damaged_total += 1
                elif self._is_back(entry) or self.state.arrived(entry, self.wall_ms()):
                    fresh.append((entry, payload))
        except m.MessageInvalid as error:
            self.damaged_total += 1
            broken = error
        await self.settle()
        await self._store(fresh)
        if broken is not None:
            raise broken
        return len(fresh)

    # within

    def entry(self, key: bytes) -> Entry | None:
        return self.state.catalogue.get(key)

    def _tell_all(self, entry: Entry) -> None:
        for peer in self.peers.values():
            peer.outbox.add(entry.key, entry.size, self.now_s())

    def expect(self, item: m.Item, region: str) -> bool:
        """Whether to take it from `region`: nobody else is about to bring it."""
        now_s = self.now_s()
        version, other, until_s = self._expected.get(item.key, (0, "", 0.0))
        if version >= item.version and other != region and now_s < until_s:
            return False
        if len(self._expected) >= m.ITEMS_MAX:
            self._expected.clear()
        self._expected[item.key] = (item.version, region, now_s + EXPECT_S)
        return True

    def stones_over(self, item: m.Item) -> list[m.Stone]:
        """The graves that cover it: who offers it has not heard of them."""
        of = self.state.graves.version_of
        names: list[tuple[GraveKind, bytes]] = [
            ("key", item.key),
            ("tenant", item.tenant),
            ("model", item.model),
        ]
        return [
            m.Stone(kind, target, version)
            for kind, target in names
            if target and (version := of(kind, target)) >= item.version
        ]

    def _is_back(self, entry: Entry) -> bool:
        """Known all along, its bytes were missing."""
        known = self.entry(entry.key)
        if known is None or known.present or known.version != entry.version:
            return False
        known.present = True
        self.state.changes.append(Change("set", known))
        return True

    async def _store(self, fresh: Sequence[tuple[Entry, Buffer]]) -> None:
        """Write what is still wanted; what died while it was written is deleted again."""
        if not fresh:
            return
        async with self.writing:
            due = [(entry, data) for entry, data in fresh if self.is_current(entry)]
            kept = await self.store.write(due) if due else []
            dead = [entry for entry, _ in due if self.entry(entry.key) is None]
            if dead:
                await self.store.delete(dead)
        for (entry, _), well in zip(due, kept, strict=True):
            if not well and self.is_current(entry):
                self.state.lost(entry.key)
        await self.settle()

    async def read(self, entries: Sequence[Entry]) -> list[Buffer | None]:
        """Their bytes; `None` also for those of another version of a value."""
        found = await self.store.read(entries)
        return [
            data if data is not None and is_payload_of(entry, data) else None
            for entry, data in zip(entries, found, strict=True)
        ]

    def is_current(self, entry: Entry) -> bool:
        known = self.entry(entry.key)
        return known is not None and known.version == entry.version

    def pack_blocks(self, peer: Peer, found: Sequence[m.Payload], gone: list[m.Item]) -> bytes:
        """A `Blocks` message, compressed as pays on that link."""
        if found and peer.benefit.wants_sample():
            item, payload = found[0]
            for name in CHOICES[1:]:
                started_s = self.now_s()
                packed = len(m.record(item, payload, name))
                peer.benefit.packed(name, len(payload), packed, self.now_s() - started_s)
        choice = peer.benefit.choice
        records = [m.record(item, payload, choice) for item, payload in found]
        return m.pack(m.Blocks([item for item, _ in found], gone), records)


def _nobody() -> None:
    """Who wants no news."""
