"""The loops that keep regions together: pings, pushes, comparisons; and their figures.

Refuses to push to a region that does not answer (its news wait in the outbox, bounded), to compare
while news are still under way (both would bring the same blocks), and to let one region's silence
slow down another's link.

    ping     every half second: distance, breaker. A region that answers again is compared with
    push     as soon as there are news, eight batches under way at most
    compare  after a start, a silence, a full outbox; else every `compare_interval_s`
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from bul.regions import messages as m
from bul.regions.node import Peer, PeerFailed, RegionNode
from bul.regions.peer import PeerClient
from bul.regions.talk import Talk

__all__ = ["Replicator"]

PING_S = 0.5
PING_DEADLINE_S = 1.0
PUSHES_MAX = 8
BATCH_S = 0.01
"""Between two batches: news that come in a burst travel together."""
ASK_DEADLINE_S = 30.0
SETTLE_S = 0.25
"""Without news under way for so long before a comparison."""


class Replicator:
    """Of one node. start, stop; one event loop."""

    def __init__(
        self,
        node: RegionNode,
        clients: Mapping[str, PeerClient],
        *,
        now_s: Callable[[], float],
        compare_interval_s: float,
        warm_blocks: int,
    ) -> None:
        self._node = node
        self._talk = Talk(node)
        self._links = [
            _LinkLoops(
                self._talk,
                peer,
                clients[name],
                now_s,
                compare_interval_s=compare_interval_s,
                warm_blocks=warm_blocks if not len(node.state.catalogue) else 0,
            )
            for name, peer in node.peers.items()
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._node.on_news = self._wake
        for link in self._links:
            self._tasks += [asyncio.create_task(work) for work in link.loops()]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def sync(self) -> dict[str, int]:
        """Push all news and compare with everybody now; records that differed, -1 for silence."""
        found: dict[str, int] = {}
        for link in self._links:
            try:
                found[link.region] = await link.compare()
            except PeerFailed:
                found[link.region] = -1
        return found

    def _wake(self) -> None:
        for link in self._links:
            link.news.set()


class _LinkLoops:
    """The loops towards one region."""

    def __init__(
        self,
        talk: Talk,
        peer: Peer,
        client: PeerClient,
        now_s: Callable[[], float],
        *,
        compare_interval_s: float,
        warm_blocks: int,
    ) -> None:
        self.region = peer.link.region
        self.news = asyncio.Event()
        self._talk = talk
        self._peer = peer
        self._client = client
        self._now_s = now_s
        self._compare_interval_s = compare_interval_s
        self._warm_blocks = warm_blocks
        self._pushes: set[asyncio.Task[None]] = set()
        self._due = asyncio.Event()
        """A comparison is due now."""

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        return [self._ping(), self._push(), self._compare()]

    async def compare(self) -> int:
        """Empty the outbox, then compare. Raises PeerFailed."""
        while self._peer.outbox and not self._peer.link.breaker.is_open:
            await self._talk.push(self.region, self._ask)
        return await self._talk.reconcile(self.region, self._ask)

    async def _ask(self, path: str, body: bytes) -> bytes:
        return await self._client.ask(path, body, ASK_DEADLINE_S)

    async def _ping(self) -> None:
        link = self._peer.link
        while True:
            was_silent = link.breaker.is_open or link.rtt_s is None
            started_s = self._now_s()
            try:
                body = m.pack(m.Ping(self._client.region))
                answer = await self._client.ask("ping", body, PING_DEADLINE_S)
                m.unpack(answer, m.Pong)
                link.answered(self._now_s() - started_s, self._now_s())
            except (PeerFailed, m.MessageInvalid):
                link.failed(self._now_s())
                if link.breaker.is_open:
                    # Their connections may hang for minutes after the link is there again.
                    for push in self._pushes:
                        push.cancel()
            else:
                if was_silent:
                    self._due.set()
                    self.news.set()
            await asyncio.sleep(PING_S)

    async def _push(self) -> None:
        try:
            while True:
                await self.news.wait()
                outbox, breaker = self._peer.outbox, self._peer.link.breaker
                if not outbox or breaker.is_open:
                    self.news.clear()
                    continue
                if len(self._pushes) >= PUSHES_MAX:
                    await asyncio.wait(self._pushes, return_when=asyncio.FIRST_COMPLETED)
                    continue
                push = asyncio.create_task(self._push_one())
                self._pushes.add(push)
                push.add_done_callback(self._pushes.discard)
                await asyncio.sleep(BATCH_S)
        finally:
            for push in self._pushes:
                push.cancel()

    async def _push_one(self) -> None:
        try:
            await self._talk.push(self.region, self._ask)
        except PeerFailed:
            self._peer.link.failed(self._now_s())
            await asyncio.sleep(PING_S)
        self.news.set()
        if self._peer.outbox.overflowed:
            self._due.set()

    async def _compare(self) -> None:
        link = self._peer.link
        while True:
            # Not `wait_for`: in Python 3.11 it may swallow the cancellation that ends this loop.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._compare_interval_s):
                    await self._due.wait()
            self._due.clear()
            if link.breaker.is_open or link.rtt_s is None:
                continue  # the ping says when it is back
            await self._until_quiet()
            try:
                if self._warm_blocks:
                    await self._talk.warm(self.region, self._ask, self._warm_blocks)
                    self._warm_blocks = 0
                await self._talk.reconcile(self.region, self._ask)
            except PeerFailed:
                link.failed(self._now_s())
            self.news.set()

    async def _until_quiet(self) -> None:
        """News first: what is about to be told need not be compared."""
        quiet_s = 0.0
        while quiet_s < SETTLE_S and not self._peer.link.breaker.is_open:
            busy = self._pushes or self._peer.outbox
            quiet_s = 0.0 if busy else quiet_s + SETTLE_S / 5
            await asyncio.sleep(SETTLE_S / 5)
