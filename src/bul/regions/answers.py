"""What a region answers to the others: one method for each message.

Refuses whoever is not in the static list, whatever is not exactly one message, and to answer before
the journal has kept what the answer promises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from bul.regions import messages as m
from bul.regions.catalogue import Entry, record_hash
from bul.regions.node import RegionNode
from bul.regions.state import Floors
from bul.regions.versions import Grave

__all__ = ["Answers"]


class Answers:
    """Of one node. `answer` is the only way in."""

    def __init__(self, node: RegionNode) -> None:
        self._node = node
        self._state = node.state
        self._answers: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {
            "offer": self._on_offer,
            "blocks": self._on_blocks,
            "compare": self._on_compare,
            "list": self._on_list,
            "get": self._on_get,
            "hot": self._on_hot,
            "ping": self._on_ping,
        }

    async def answer(self, region: str, path: str, body: bytes) -> bytes:
        """The reply to one message of `region`. Raises MessageInvalid."""
        if region not in self._node.peers or path not in self._answers:
            raise m.MessageInvalid(f"no {path!r} from {region!r}")
        return await self._answers[path](region, body)

    async def _on_offer(self, region: str, body: bytes) -> bytes:
        offer, _ = m.unpack(body, m.Offer)
        for stone in offer.stones:
            self._state.bury(m.grave_of(stone), self._node.wall_ms())
        positions: list[int] = []
        stones: list[m.Stone] = []
        for position, item in enumerate(offer.items):
            verdict = self._state.judge(m.entry_of(item, present=True), self._node.wall_ms())
            if verdict == "wanted" and self._node.expect(item, region):
                positions.append(position)
            elif verdict == "dead":
                stones += self._node.stones_over(item)
        await self._node.settle()
        return m.pack(m.Wanted(positions, stones))

    async def _on_blocks(self, region: str, body: bytes) -> bytes:
        message, records = m.unpack(body, m.Blocks)
        await self._node.take_in(m.payloads(message.items, records))
        return m.pack(m.Wanted([]))

    async def _on_compare(self, region: str, body: bytes) -> bytes:
        message, _ = m.unpack(body, m.Compare)
        own, floors = self._state.floors, Floors(message.grave_floor, message.catalogue_floor)
        buckets: list[int] | None = None
        if own.above(floors) == floors and len(message.digests) == len(
            mine := self._state.digests(floors)
        ):
            buckets = _differing(mine, message.digests)
        return m.pack(m.Differ(own.graves, own.catalogue, buckets))

    async def _on_list(self, region: str, body: bytes) -> bytes:
        message, _ = m.unpack(body, m.ListBuckets)
        theirs = Floors(message.grave_floor, message.catalogue_floor)
        self._state.meet(theirs)
        mine = self._state.hashes(message.buckets, self._state.floors.above(theirs))
        asked = m.numbers(message.hashes)
        found = [mine[number] for number in mine.keys() - asked]
        entries = [one for one in found if isinstance(one, Entry)]
        numbers = [record_hash(entry.key, entry.version) for entry in entries]
        entries = self._state.disown(numbers, message.buckets, theirs)
        entries.sort(key=lambda entry: (entry.hits, entry.version), reverse=True)
        stones = [m.stone_of(one) for one in found if isinstance(one, Grave)]
        await self._node.settle()
        items = [m.item_of(entry) for entry in entries[: m.ITEMS_MAX]]
        return m.pack(m.Listing(items, stones[: m.ITEMS_MAX], m.hashes(asked - mine.keys())))

    async def _on_get(self, region: str, body: bytes) -> bytes:
        message, _ = m.unpack(body, m.Get)
        entries = [e for key in message.keys if (e := self._state.catalogue.get(key)) is not None]
        for entry in entries:
            entry.hits += 1
        here = [entry for entry in entries if entry.present]
        gone = [entry for entry in entries if not entry.present]
        found: list[m.Payload] = []
        size = 0
        for entry, payload in zip(here, await self._node.read(here), strict=True):
            if payload is None:
                self._state.lost(entry.key)
                gone.append(entry)
            elif size + len(payload) <= m.BODY_BYTES_MAX // 2:
                found.append((m.item_of(entry), payload))
                size += len(payload)
        await self._node.settle()
        return self._node.pack_blocks(
            self._node.peers[region], found, [m.item_of(entry) for entry in gone]
        )

    async def _on_hot(self, region: str, body: bytes) -> bytes:
        message, _ = m.unpack(body, m.Hot)
        entries = self._state.catalogue.hottest(message.count)
        stones = [m.stone_of(grave) for grave in self._state.graves.all()][: m.ITEMS_MAX]
        return m.pack(m.Listing([m.item_of(entry) for entry in entries], stones))

    async def _on_ping(self, region: str, body: bytes) -> bytes:
        m.unpack(body, m.Ping)
        return m.pack(m.Pong(self._state.region, self._node.wall_ms()))


def _differing(mine: bytes, theirs: bytes) -> list[int]:
    if mine == theirs:
        return []
    differs = np.frombuffer(mine, np.uint64) != np.frombuffer(theirs, np.uint64)
    found: list[int] = np.flatnonzero(differs).tolist()
    return found
