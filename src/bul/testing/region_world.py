"""Random histories of three regions, from one seed: the production code in a world that breaks.

Refuses to pass by looking away: after every few events each region is searched for wrong bytes and
for what it had heard to be deleted; at the end the world is mended and all regions must agree. What
fails is a HistoryFailed that names its seed; `play(seed)` plays it again, event by event.

Persisted across a crash: the store's bytes and the journal, of which a power cut takes some of what
came after the last durable change (and the store's bytes of what the journal then does not know).
Lost: outboxes, promises, measured distances, conversations under way.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from hashlib import blake2b

from xxhash import xxh3_64_intdigest

from bul.regions.answers import Answers
from bul.regions.catalogue import Entry
from bul.regions.messages import MessageInvalid
from bul.regions.node import Ask, Peer, RegionNode
from bul.regions.order import Link
from bul.regions.outbox import Outbox, Pace
from bul.regions.state import RegionState
from bul.regions.talk import Talk
from bul.regions.versions import Grave, GraveKind, Graves
from bul.testing.region_net import Disk, Faults, JournalFile, VirtualNet, VirtualTime, run_now

__all__ = ["REGIONS", "HistoryFailed", "Outcome", "play"]

REGIONS = ("us-east", "eu-west", "ap-south")
MODELS = (b"m" * 32, b"n" * 32)
TENANTS = (b"tenant-0", b"tenant-1", b"")
EVENTS = 110
KEYS = 40
TICK_S = 0.3
MEND_ROUNDS = 60
WALL_MS = 1_800_000_000_000

MakeState = Callable[[str, int, Graves], RegionState]


class HistoryFailed(AssertionError):
    """The seed is the bug report."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a history was made of."""

    writes: int
    deletes: int
    crashes: int
    messages: int
    damaged: int


def _make_state(region: str, entries_max: int, graves: Graves) -> RegionState:
    return RegionState(region, entries_max=entries_max, graves=graves)


def play(seed: int, make_state: MakeState = _make_state, *, forge: float = 0.0) -> Outcome:
    """One history. Raises HistoryFailed. forge: share of messages, for a control."""
    return _World(seed, make_state, forge).play()


class _Region:
    """What survives, and the node of its present life."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.disk = Disk()
        self.journal = JournalFile()
        self.skew_ms = 0
        self.node: RegionNode | None = None
        self.answers: Answers | None = None
        self.talk: Talk | None = None
        self.power_cuts = 0
        self.heard: dict[tuple[GraveKind, bytes], int] = {}


class _World:
    def __init__(self, seed: int, make_state: MakeState, forge: float) -> None:
        self.seed = seed
        self.forge = forge
        self.chance = random.Random(seed)
        self.time = VirtualTime()
        self.net = VirtualNet(self.time, self.chance, self.deliver)
        self.regions = {name: _Region(name) for name in REGIONS}
        self.make_state = make_state
        # Most worlds are roomy; in some, graves or entries must be forgotten.
        self.graves_max = self.chance.choice((64, 64, 64, 6))
        self.entries_max = self.chance.choice((1000, 1000, 1000, 24))
        self.queue_max = self.chance.choice((1000, 8))
        self.written: dict[tuple[bytes, int], bytes] = {}
        self.graves: list[Grave] = []
        self.deletes = self.crashes = self.damaged = 0
        for region in self.regions.values():
            self.start(region)

    # the course of it

    def play(self) -> Outcome:
        chance = self.chance
        self.net.faults = Faults(
            drop=chance.choice((0.0, 0.1, 0.3)),
            repeat=chance.choice((0.0, 0.2)),
            flip=chance.choice((0.0, 0.1)),
            forge=self.forge,
            delay_s=chance.choice((0.02, 0.2, 1.0)),
        )
        for count in range(EVENTS):
            self.event()
            until_s = self.time.now_s + chance.random() * TICK_S
            self.run_until(until_s)
            if count % 8 == 7:
                self.check()
        self.mend()
        return Outcome(
            len(self.written), self.deletes, self.crashes, self.net.messages, self.damaged
        )

    def run_until(self, until_s: float) -> None:
        self.time.after(until_s - self.time.now_s, lambda: None)
        while self.time.now_s < until_s and self.time.step():
            pass

    def event(self) -> None:
        region = self.chance.choice(list(self.regions.values()))
        kinds = (self.write, self.converse, self.delete, self.crash, self.shake)
        [kind] = self.chance.choices(kinds, weights=(40, 40, 10, 3, 7))
        kind(region)

    def write(self, region: _Region) -> None:
        if region.node is None:
            return
        number = self.chance.randrange(KEYS)
        key = blake2b(b"%d" % number, digest_size=32).digest()
        is_block = number % 2 == 0
        payload = key * 2 if is_block else self.chance.randbytes(self.chance.randrange(40))
        entry = Entry(
            key=key,
            version=0,
            model=MODELS[number % 4 // 2],
            tenant=TENANTS[number % 3],
            tokens=64 if is_block else 0,
            size=len(payload),
            checksum=0 if is_block else xxh3_64_intdigest(payload),
        )
        region.disk.blocks[key] = payload
        [stamped] = run_now(region.node.announce([entry]))
        self.written[key, stamped.version] = payload

    def delete(self, region: _Region) -> None:
        if region.node is None:
            return
        kinds: tuple[GraveKind, ...] = ("key", "key", "key", "tenant", "model")
        kind = self.chance.choice(kinds)
        target = {
            "key": blake2b(b"%d" % self.chance.randrange(KEYS), digest_size=32).digest(),
            "tenant": TENANTS[self.chance.randrange(2)],
            "model": self.chance.choice(MODELS),
        }[kind]
        grave = run_now(region.node.erase(kind, target))
        self.graves.append(grave)
        self.deletes += 1

    def converse(self, region: _Region) -> None:
        if region.node is None or region.talk is None:
            return
        other = self.chance.choice([name for name in REGIONS if name != region.name])
        ask = self.ask(region, other)
        if region.node.peers[other].outbox and self.chance.random() < 0.8:
            self.time.spawn(region.talk.push(other, ask))
        elif self.chance.random() < 0.2:
            self.time.spawn(region.talk.warm(other, ask, 10))
        else:
            self.time.spawn(region.talk.reconcile(other, ask))

    def crash(self, region: _Region) -> None:
        if region.node is None:
            return
        self.hear()
        self.crashes += 1
        region.node = region.answers = region.talk = None
        if self.chance.random() < 0.5:
            region.power_cuts += 1
            region.journal.cut_power(self.chance)
            known = {entry.key for entry in region.journal.replay()[0]}
            for key in region.disk.blocks.keys() - known:
                del region.disk.blocks[key]
        self.time.after(self.chance.random() * 2, lambda: self.start(region))

    def shake(self, region: _Region) -> None:
        """Cut or mend a link, or set a clock."""
        pairs = [frozenset((a, b)) for a in REGIONS for b in REGIONS if a < b]
        deed = self.chance.randrange(3)
        if deed == 0:
            self.net.cut.add(self.chance.choice(pairs))
        elif deed == 1:
            self.net.cut.clear()
        else:
            region.skew_ms = self.chance.randint(-120_000, 120_000)

    # regions

    def start(self, region: _Region) -> None:
        if region.node is not None:
            return
        graves = Graves(graves_max=self.graves_max)
        state = self.make_state(region.name, self.entries_max, graves)
        state.restore(*region.journal.replay())
        others = [name for name in REGIONS if name != region.name]
        peers = {name: Peer(Link(name), Outbox(self.queue_max), Pace()) for name in others}
        region.node = RegionNode(
            state,
            peers,
            region.disk,
            region.journal,
            wall_ms=lambda: WALL_MS + int(self.time.now_s * 1000) + region.skew_ms,
            now_s=lambda: self.time.now_s,
            pause=_no_pause,
        )
        region.answers, region.talk = Answers(region.node), Talk(region.node)
        run_now(region.node.settle())

    def ask(self, region: _Region, other: str) -> Ask:
        node = region.node
        return self.net.ask(region.name, other, lambda: region.node is node)

    def deliver(self, to: str, sender: str, path: str, body: bytes) -> bytes | None:
        answers = self.regions[to].answers
        if answers is None:
            return None
        try:
            answer = run_now(answers.answer(sender, path, body))
        except MessageInvalid:
            self.damaged += 1
            return None
        assert isinstance(answer, bytes)
        return answer

    # what must hold

    def fail(self, text: str) -> None:
        raise HistoryFailed(f"seed {self.seed}, {self.time.now_s:.3f} s: {text}")

    def hear(self) -> None:
        for region in self.regions.values():
            for grave in region.node.state.graves.all() if region.node else ():
                name = grave.kind, grave.target
                region.heard[name] = max(region.heard.get(name, 0), grave.version)

    def check(self) -> None:
        """No wrong bytes, nothing that this region had heard to be dead."""
        self.hear()
        for region in self.regions.values():
            if region.node is None:
                continue
            entries = {entry.key: entry for entry in region.node.state.catalogue}
            for entry in entries.values():
                self.check_entry(region, entry)
            strays = region.disk.blocks.keys() - entries.keys()
            if strays:
                self.fail(f"{region.name} keeps bytes of {len(strays)} keys that it disowned")

    def check_entry(self, region: _Region, entry: Entry) -> None:
        names: tuple[tuple[GraveKind, bytes], ...] = (
            ("key", entry.key),
            ("tenant", entry.tenant),
            ("model", entry.model),
        )
        for name in names:
            if entry.version <= region.heard.get(name, 0):
                self.fail(f"{region.name} resurrected {entry.key.hex()[:8]} under {name[0]}")
        payload = served(region, entry)
        if payload is None and entry.present and not region.power_cuts:
            self.fail(f"{region.name} lost {entry.key.hex()[:8]}")
        if payload is not None and payload != self.written.get((entry.key, entry.version)):
            self.fail(f"{region.name} has wrong bytes for {entry.key.hex()[:8]}")

    def mend(self) -> None:
        """No faults any more: all regions must come to the same, which is right."""
        self.net.faults = Faults()
        self.net.cut.clear()
        self.run_until(self.time.now_s + 15)
        for _ in range(MEND_ROUNDS):
            if self.agreed():
                break
            for region in self.regions.values():
                self.talk_to_all(region)
            self.run_until(self.time.now_s + 3)
        else:
            self.fail(f"no agreement after {MEND_ROUNDS} rounds: {self.describe()}")
        self.check()
        self.check_dead()

    def talk_to_all(self, region: _Region) -> None:
        assert region.node is not None
        assert region.talk is not None
        for other, peer in region.node.peers.items():
            ask = self.ask(region, other)
            while peer.outbox:
                self.time.spawn(region.talk.push(other, ask))
            self.time.spawn(region.talk.reconcile(other, ask))

    def agreed(self) -> bool:
        views = []
        states = [region.node.state for region in self.regions.values() if region.node]
        floor = max(state.catalogue_floor for state in states)
        grave_floor = max(state.graves.floor for state in states)
        for region in self.regions.values():
            assert region.node is not None
            state = region.node.state
            alive = {
                (entry.key, entry.version) for entry in state.catalogue if entry.version > floor
            }
            dead = {grave for grave in state.graves.all() if grave.version > grave_floor}
            views.append((alive, dead))
        return all(view == views[0] for view in views)

    def check_dead(self) -> None:
        """Nothing lives anywhere that was deleted anywhere."""
        for grave in self.graves:
            for region in self.regions.values():
                assert region.node is not None
                for entry in region.node.state.catalogue:
                    target = {"key": entry.key, "tenant": entry.tenant, "model": entry.model}
                    if target[grave.kind] == grave.target and entry.version <= grave.version:
                        self.fail(f"{region.name} still has what a {grave.kind} grave covers")

    def describe(self) -> str:
        parts = []
        for region in self.regions.values():
            assert region.node is not None
            state = region.node.state
            parts.append(f"{region.name}: {len(state.catalogue)} + {len(state.graves)} graves")
        return ", ".join(parts)


def served(region: _Region, entry: Entry) -> bytes | None:
    """What the region would answer who asks for it."""
    if region.node is None or not entry.present:
        return None
    [payload] = run_now(region.node.read([entry]))
    return None if payload is None else bytes(payload)


async def _no_pause(seconds: float) -> None:
    pass
