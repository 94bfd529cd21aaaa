"""Blocks that are not here, from the region that has them soonest: asked in order, hedged.

Refuses to wait beyond one deadline for all, to ask whom its breaker shuts off, and to pass on what
its record does not vouch for. What came is kept here too, so that it is asked for once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from bul.blocks.prefix import Buffer
from bul.regions import messages as m
from bul.regions.catalogue import Entry
from bul.regions.node import PeerFailed, RegionNode
from bul.regions.order import Ask, ask_order

__all__ = ["EXPLORE_EVERY", "Fetcher"]

BLAME_BYTES_MAX = 1 << 20
"""Who does not bring more than this in time may be well, and the link slow: pings know better."""
EXPLORE_EVERY = 128
"""Every so many-th miss of a key that no region told of is asked for all the same: rarely enough
not to be felt in the 99th percentile."""

AskRegion = Callable[[str, str, bytes, float], Awaitable[bytes]]
"""(region, path, body, deadline_s) -> the answer. Raises PeerFailed."""
Found = dict[bytes, tuple[m.Item, Buffer]]


class Fetcher:
    """Of one node."""

    def __init__(
        self, node: RegionNode, ask: AskRegion, *, deadline_s: float, now_s: Callable[[], float]
    ) -> None:
        self._node = node
        self._ask = ask
        self._now_s = now_s
        self._unknown = 0
        self.deadline_s = deadline_s
        self.asked_total = 0
        self.hedged_total = 0
        self.found_total = 0
        self.spared_total = 0

    def likely(self, keys: Sequence[bytes]) -> int:
        """How many leading keys another region may have. Asks nobody.

        Once all regions that answer have been compared with, what they did not tell of they do
        not have (but for the last moments): asking for it would cost a round trip for nothing.
        """
        peers = [peer.link for peer in self._node.peers.values() if not peer.link.breaker.is_open]
        if not peers:
            return 0
        if not all(link.synced for link in peers):
            return len(keys)
        entry = self._node.entry
        known = next((at for at, key in enumerate(keys) if entry(key) is None), len(keys))
        if known:
            return known
        self._unknown += 1
        if self._unknown % EXPLORE_EVERY == 0:
            return len(keys)
        self.spared_total += 1
        return 0

    async def fetch(self, keys: Sequence[bytes], *, at_once: bool = False) -> Found:
        """What of `keys` this region's store or another region has; kept here from now on."""
        here = await self._here(keys)
        missing = [key for key in keys if key not in here]
        found = await self._gather(missing, at_once=at_once)
        await self._node.take_in(found.values())
        alive = {key: pair for key, pair in found.items() if self._is_alive(pair[0])}
        self.found_total += len(alive)
        return here | alive

    async def _here(self, keys: Sequence[bytes]) -> Found:
        """What lies in the region's own store, though who asks has not found it (in time)."""
        entries = [entry for entry in self._known(keys) if entry.present]
        found: Found = {}
        for entry, payload in zip(entries, await self._node.read(entries), strict=True):
            if payload is None:
                self._node.state.lost(entry.key)
            else:
                found[entry.key] = m.item_of(entry), payload
        return found

    def _is_alive(self, item: m.Item) -> bool:
        """Not deleted here; who has it may not have heard of that yet."""
        entry = self._node.entry(item.key)
        return entry is not None and entry.version >= item.version

    async def _gather(self, keys: list[bytes], *, at_once: bool) -> Found:
        links = [peer.link for peer in self._node.peers.values()]
        asks = list(
            ask_order(
                links,
                deadline_s=self.deadline_s,
                at_once=at_once,
                size_bytes=self._size(keys),
                tokens=sum(entry.tokens for entry in self._known(keys)),
            )
        )
        started_s = self._now_s()
        found: Found = {}
        running: set[asyncio.Task[Found]] = set()
        try:
            while (asks or running) and len(found) < len(keys):
                passed_s = self._now_s() - started_s
                if passed_s >= self.deadline_s:
                    break
                while asks and (asks[0].start_s <= passed_s or not running):
                    running.add(self._start(asks.pop(0), keys, self.deadline_s - passed_s, running))
                until_s = min(asks[0].start_s if asks else self.deadline_s, self.deadline_s)
                done, running = await asyncio.wait(
                    running,
                    timeout=max(0.001, until_s - passed_s),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    _merge(found, task.result())
        finally:
            for task in running:
                task.cancel()
        return found

    def _known(self, keys: Sequence[bytes]) -> list[Entry]:
        return [entry for key in keys if (entry := self._node.entry(key)) is not None]

    def _size(self, keys: Sequence[bytes]) -> int:
        """Bytes of those that are known of."""
        return sum(entry.size for entry in self._known(keys))

    def _start(
        self, ask: Ask, keys: list[bytes], left_s: float, running: set[asyncio.Task[Found]]
    ) -> asyncio.Task[Found]:
        self.asked_total += 1
        self.hedged_total += bool(running)
        return asyncio.create_task(self._ask_one(ask.region, keys, left_s))

    async def _ask_one(self, region: str, keys: list[bytes], left_s: float) -> Found:
        """What one region has; nothing if it fails, which its breaker hears."""
        link = self._node.peers[region].link
        started_s = self._now_s()
        try:
            body = await self._ask(region, "get", m.pack(m.Get(keys)), left_s)
            message, records = m.unpack(body, m.Blocks)
            found = {
                item.key: (item, payload)
                for item, payload in m.payloads(message.items, records)
                if payload is not None and item.key in keys
            }
        except (PeerFailed, m.MessageInvalid):
            if self._size(keys) <= BLAME_BYTES_MAX:
                link.failed(self._now_s())
            return {}
        link.break_even.observe(len(body), self._now_s() - started_s)
        return found


def _merge(found: Found, more: Mapping[bytes, tuple[m.Item, Buffer]]) -> None:
    """Of two versions of a value the newer one."""
    for key, (item, payload) in more.items():
        if key not in found or found[key][0].version < item.version:
            found[key] = item, payload
