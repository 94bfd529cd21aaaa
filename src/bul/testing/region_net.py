"""A network, disks and clocks made of one seed, under the production code of the regions.

Refuses to know what a message means: it drops, repeats, delays (and so reorders) whole messages,
flips bits behind the document of some, and never answers across a partition. Coroutines are driven
by hand in virtual time: no event loop, no sleep, so a history takes milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any

from bul.blocks.prefix import Buffer
from bul.regions import messages as m
from bul.regions.catalogue import Entry
from bul.regions.node import Ask, PeerFailed
from bul.regions.state import Change
from bul.regions.versions import Grave

__all__ = ["Disk", "Faults", "JournalFile", "VirtualNet", "VirtualTime", "run_now"]

TIMEOUT_S = 3.0


class _Reply:
    """What a coroutine waits for; `VirtualTime` goes on with it."""

    def __init__(self, alive: Callable[[], bool]) -> None:
        self.alive = alive
        self.waiter: Coroutine[Any, Any, Any] | None = None
        self.done = False

    def __await__(self) -> Generator[_Reply, bytes, bytes]:
        return (yield self)


class VirtualTime:
    """Events in order of their time; equal times in the order in which they were planned."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + seconds, next(self._count), act))

    def step(self) -> bool:
        """One event; False if there is none."""
        if not self._events:
            return False
        self.now_s, _, act = heapq.heappop(self._events)
        act()
        return True

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run until it waits for a reply. PeerFailed ends it quietly."""
        self._advance(work, None, None)

    def resume(self, reply: _Reply, body: bytes | None) -> None:
        """Answer, once; `None` is a failure."""
        if reply.done:
            return
        reply.done = True
        if reply.waiter is not None and not reply.alive():
            reply.waiter.close()
        elif reply.waiter is not None:
            failure = PeerFailed("no answer") if body is None else None
            self._advance(reply.waiter, body, failure)

    def _advance(
        self, work: Coroutine[Any, Any, Any], body: bytes | None, failure: PeerFailed | None
    ) -> None:
        try:
            reply = work.throw(failure) if failure is not None else work.send(body)
        except (StopIteration, PeerFailed):
            return
        assert isinstance(reply, _Reply), reply
        reply.waiter = work


def run_now(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """Shares of messages, in [0, 1]; a request and its answer are two. delay_s: up to so much.

    flip: a bit of a record. forge: the same, and its checksums made anew: what would come from a
    store that has none, so a harness that looks must find wrong bytes.
    """

    drop: float = 0.0
    repeat: float = 0.0
    flip: float = 0.0
    forge: float = 0.0
    delay_s: float = 0.05


class VirtualNet:
    """Between regions. `deliver(to, sender, path, body)` answers, or None if nobody is there."""

    def __init__(
        self,
        time: VirtualTime,
        chance: random.Random,
        deliver: Callable[[str, str, str, bytes], bytes | None],
    ) -> None:
        self.faults = Faults()
        self.cut: set[frozenset[str]] = set()
        """Pairs that cannot hear each other."""
        self.messages = 0
        self._time = time
        self._chance = chance
        self._deliver = deliver

    def ask(self, sender: str, to: str, alive: Callable[[], bool]) -> Ask:
        """How `sender` asks `to`; who is not alive any more hears no answer."""

        def asking(path: str, body: bytes) -> Awaitable[bytes]:
            reply = _Reply(alive)
            self._time.after(TIMEOUT_S, lambda: self._time.resume(reply, None))
            self._send(sender, to, lambda: self._arrive(sender, to, path, body, reply))
            return reply

        return asking

    def _arrive(self, sender: str, to: str, path: str, body: bytes, reply: _Reply) -> None:
        if path == "blocks":
            body = self._spoiled(body)
        answer = self._deliver(to, sender, path, body)
        if answer is None:
            return
        if path == "get":
            answer = self._spoiled(answer)
        self._send(to, sender, lambda: self._time.resume(reply, answer))

    def _send(self, sender: str, to: str, arrive: Callable[[], None]) -> None:
        self.messages += 1
        faults, chance = self.faults, self._chance
        for _ in range(2 if chance.random() < faults.repeat else 1):
            if chance.random() >= faults.drop:
                delay_s = 0.005 + chance.random() * faults.delay_s
                self._time.after(delay_s, lambda: self._unless_cut(sender, to, arrive))

    def _unless_cut(self, sender: str, to: str, arrive: Callable[[], None]) -> None:
        if frozenset((sender, to)) not in self.cut:
            arrive()

    def _spoiled(self, body: bytes) -> bytes:
        """With one bit of a record flipped, as a bad memory would: the document has its MAC."""
        if self._chance.random() < self.faults.forge:
            return _forged(body)
        start = 4 + int.from_bytes(body[:4], "little")
        if start >= len(body) or self._chance.random() >= self.faults.flip:
            return body
        at = self._chance.randrange(start, len(body))
        return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


class Disk:
    """A region's store; survives crashes."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}

    async def read(self, entries: Sequence[Entry]) -> list[Buffer | None]:
        return [self.blocks.get(entry.key) for entry in entries]

    async def write(self, blocks: Sequence[tuple[Entry, Buffer]]) -> list[bool]:
        for entry, payload in blocks:
            self.blocks[entry.key] = bytes(payload)
        return [True] * len(blocks)

    async def delete(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self.blocks.pop(entry.key, None)


class JournalFile:
    """Changes in order. A power cut takes some of those behind the last durable one."""

    def __init__(self) -> None:
        self._changes: list[Change] = []

    async def write(self, changes: Sequence[Change]) -> None:
        self._changes += [
            dataclasses.replace(change, entry=dataclasses.replace(change.entry))
            if change.entry is not None
            else change
            for change in changes
        ]

    def cut_power(self, chance: random.Random) -> None:
        durable = max((i + 1 for i, c in enumerate(self._changes) if c.durable), default=0)
        del self._changes[chance.randint(durable, len(self._changes)) :]

    def replay(self) -> tuple[list[Entry], list[Grave], dict[str, int]]:
        """What a region that starts now finds."""
        entries: dict[bytes, Entry] = {}
        graves: dict[tuple[str, bytes], Grave] = {}
        numbers: dict[str, int] = {}
        for change in self._changes:
            if change.kind == "set":
                assert change.entry is not None
                entries[change.entry.key] = dataclasses.replace(change.entry)
            elif change.kind == "drop":
                entries.pop(change.key, None)
            elif change.kind == "number":
                numbers[change.name] = change.number
            else:
                assert change.grave is not None
                name = change.grave.kind, change.grave.target
                if change.kind == "dig":
                    graves[name] = change.grave
                else:
                    graves.pop(name, None)
        return list(entries.values()), list(graves.values()), numbers


def _forged(body: bytes) -> bytes:
    """The same blocks with one bit flipped in each, sealed as if they were sound."""
    message, records = m.unpack(body, m.Blocks)
    with contextlib.suppress(m.MessageInvalid):
        forged = [
            m.record(item, bytes([data[0] ^ 1]) + bytes(data[1:]))
            for item, data in m.payloads(message.items, records)
            if data
        ]
        if len(forged) == len(message.items):
            return m.pack(message, forged)
    return body
