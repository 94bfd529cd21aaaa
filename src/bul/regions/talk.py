"""What a region says to the others: news at once, repairs now and then, a warm start.

Refuses to send a block that was not asked for, to have two regions bring the same one, and to go
faster than the link's cap.

    push       offer keys -> which are wanted -> those blocks alone
    reconcile  compare digests -> list what differs -> pull and push that
    warm       the hottest of another region -> pull, hottest first

`ask(path, body)` carries a message to one region and gives its answer, or raises PeerFailed; the
simulator drops, repeats and reorders these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import msgspec

from bul.regions import messages as m
from bul.regions.node import Ask, Peer, PeerFailed, RegionNode
from bul.regions.outbox import Batch
from bul.regions.state import Floors
from bul.regions.versions import Grave

__all__ = ["Talk"]

BATCH_KEYS: Final = 256
BATCH_BYTES: Final = 4 << 20
READY_S: Final = 5.0
"""A replica tells of a block when it queues it; so long may its store take."""
COMPARES_MAX: Final = 4

_M = TypeVar("_M", bound=msgspec.Struct)


class Talk:
    """Of one node."""

    def __init__(self, node: RegionNode) -> None:
        self._node = node
        self._state = node.state

    async def push(self, region: str, ask: Ask) -> int:
        """Tell `region` one batch of news; how many blocks it wanted. Raises PeerFailed."""
        peer = self._node.peers[region]
        batch = peer.outbox.take(BATCH_KEYS, BATCH_BYTES)
        if not batch:
            return 0
        peer.pushing += 1
        try:
            return await self._push(peer, batch, ask)
        except BaseException:
            sizes = [e.size if (e := self._node.entry(key)) else 0 for key, _ in batch.keys]
            peer.outbox.give_back(batch, sizes)
            raise
        finally:
            peer.pushing -= 1

    async def reconcile(self, region: str, ask: Ask) -> int:
        """Compare with `region` and repair both; how many records differed. Raises PeerFailed."""
        peer = self._node.peers[region]
        floors = self._state.floors
        for _ in range(COMPARES_MAX):
            sent = m.Compare(self._state.digests(floors), floors.graves, floors.catalogue)
            reply = await _asked(ask, "compare", sent, m.Differ)
            theirs = Floors(reply.grave_floor, reply.catalogue_floor)
            self._state.meet(theirs)
            await self._node.settle()  # the next question may never be answered
            floors = self._state.floors.above(theirs)
            if reply.buckets is not None:
                break
        else:
            return 0  # floors rise quicker than we ask: another time
        differed = 0
        if reply.buckets:
            differed = await self._repair(peer, ask, reply.buckets, theirs)
        await self._node.settle()
        peer.link.synced = True
        peer.outbox.mended()
        peer.reconciled_total += 1
        return differed

    async def warm(self, region: str, ask: Ask, count: int) -> int:
        """Pull the hottest `count` of `region` that are not here, hottest first; how many came."""
        peer = self._node.peers[region]
        listing = await _asked(ask, "hot", m.Hot(min(count, m.ITEMS_MAX)), m.Listing)
        return await self._learn(peer, ask, listing)

    async def _push(self, peer: Peer, batch: Batch, ask: Ask) -> int:
        since = dict(batch.keys)
        entries = [entry for key in since if (entry := self._node.entry(key)) is not None]
        offer = m.Offer(
            [m.item_of(entry) for entry in entries], [m.stone_of(g) for g in batch.graves]
        )
        started_s = self._node.now_s()
        reply = await _asked(ask, "offer", offer, m.Wanted)
        rtt_s = self._node.now_s() - started_s
        for stone in reply.stones:
            self._state.bury(m.grave_of(stone), self._node.wall_ms())
        await self._node.settle()
        wanted = [entries[at] for at in reply.positions if 0 <= at < len(entries)]
        payloads = await self._node.read(wanted)
        found: list[m.Payload] = []
        for entry, payload in zip(wanted, payloads, strict=True):
            if payload is not None and self._node.is_current(entry):
                entry.present = True
                found.append((m.item_of(entry), payload))
            elif self._node.now_s() - since[entry.key] < READY_S and self._node.is_current(entry):
                peer.outbox.give_back(Batch((), ((entry.key, since[entry.key]),)), [entry.size])
            elif self._node.is_current(entry):
                self._state.lost(entry.key)
        size = sum(len(payload) for _, payload in found)
        if found:
            await self._node.pause(peer.pace.wait_s(size, self._node.now_s()))
            body = self._node.pack_blocks(peer, found, [])
            started_s = self._node.now_s()
            await _asked_raw(ask, "blocks", body, m.Wanted)
            peer.benefit.sent(
                len(body), self._node.now_s() - started_s - min(rtt_s, peer.link.rtt_s or 0.0)
            )
        for item, _ in found:
            # The answer took half a round trip to come back.
            peer.lags.add(max(0.0, self._node.now_s() - since[item.key] - rtt_s / 2))
        peer.pushed_blocks_total += len(found)
        peer.pushed_bytes_total += size
        return len(found)

    async def _repair(self, peer: Peer, ask: Ask, buckets: list[int], theirs: Floors) -> int:
        own = self._state.floors
        mine = self._state.hashes(buckets, own.above(theirs))
        listing = await _asked(
            ask,
            "list",
            m.ListBuckets(buckets, m.hashes(mine.keys()), own.graves, own.catalogue),
            m.Listing,
        )
        lacks = m.numbers(listing.lacks)
        owned = self._state.disown(lacks, buckets, theirs)
        await self._node.settle()
        for entry in owned:
            peer.outbox.add(entry.key, entry.size, self._node.now_s())
        for number in lacks:
            grave = mine.get(number)
            if isinstance(grave, Grave):
                peer.outbox.bury(grave)
        await self._learn(peer, ask, listing)
        return len(lacks) + len(listing.items) + len(listing.stones)

    async def _learn(self, peer: Peer, ask: Ask, listing: m.Listing) -> int:
        """Take in graves, then pull what is wanted, in the order in which it was listed."""
        wall_ms = self._node.wall_ms()
        for stone in listing.stones:
            self._state.bury(m.grave_of(stone), wall_ms)
        wanted = [
            item
            for item in listing.items
            if self._state.judge(m.entry_of(item, present=True), wall_ms) == "wanted"
            and self._node.expect(item, peer.link.region)
        ]
        await self._node.settle()
        return sum([await self._pull(peer, ask, chunk) for chunk in _chunks(wanted)])

    async def _pull(self, peer: Peer, ask: Ask, items: Sequence[m.Item]) -> int:
        size = sum(item.size for item in items)
        await self._node.pause(peer.pace.wait_s(size, self._node.now_s()))
        body = await ask("get", m.pack(m.Get([item.key for item in items])))
        try:
            message, records = m.unpack(body, m.Blocks)
            came = await self._node.take_in(m.payloads(message.items, records))
        except m.MessageInvalid as error:
            raise PeerFailed(str(error)) from None
        for item in message.gone:
            # It knows of it and has lost the bytes: so do we, or we would ask again for ever.
            self._state.arrived(m.entry_of(item, present=False), self._node.wall_ms())
        await self._node.settle()
        peer.pulled_blocks_total += came
        peer.pulled_bytes_total += sum(item.size for item in message.items)
        return came


async def _asked(ask: Ask, path: str, message: msgspec.Struct, kind: type[_M]) -> _M:
    return await _asked_raw(ask, path, m.pack(message), kind)


async def _asked_raw(ask: Ask, path: str, body: bytes, kind: type[_M]) -> _M:
    reply = await ask(path, body)
    try:
        return m.unpack(reply, kind)[0]
    except m.MessageInvalid as error:
        raise PeerFailed(str(error)) from None


def _chunks(items: Sequence[m.Item]) -> Iterable[list[m.Item]]:
    chunk: list[m.Item] = []
    size = 0
    for item in items:
        if chunk and (size + item.size > BATCH_BYTES or len(chunk) >= BATCH_KEYS):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += item.size
    if chunk:
        yield chunk
