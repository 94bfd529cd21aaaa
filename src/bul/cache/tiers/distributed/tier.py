"""The distributed tier: blocks spread over the memory of all ranks, each on one of them.

Refuses to wait for a rank that is gone (its blocks are misses, and what is new goes to the next one
in line), to use collectives, and to serve a byte that its record's header does not vouch for.

    which rank     rendezvous hashing of the key over those that are not away (`place.py`)
    what it keeps  a ring of shared memory, the oldest overwritten first (`arena.py`)
    how to ask     framed messages over TCP (`wire.py`); payloads are copied out of the other
                   rank's memory on the same host, else they go through a process group of two
                   (`link.py`): gloo, or nccl between GPUs

Another list of ranks, after a restart say, places keys elsewhere: then some are misses. Open
`tier.py`, `peer.py`, `channel.py`, `serve.py`, `arena.py`, in this order.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from bul.blocks.chain import KEY_BYTES
from bul.blocks.identity import Identity
from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, CheckReport
from bul.cache.tiers.disk.read import own_key
from bul.cache.tiers.distributed.arena import Arena, read_record
from bul.cache.tiers.distributed.channel import Channel, ChannelPlan
from bul.cache.tiers.distributed.link import Links
from bul.cache.tiers.distributed.peer import Peer, PeerLost
from bul.cache.tiers.distributed.place import owner, seeds
from bul.cache.tiers.distributed.serve import RankServer
from bul.cache.tiers.distributed.wire import KEYS_MAX
from bul.clock import Clock, SystemClock
from bul.errors import TierUnavailable

__all__ = ["DistributedTier", "World"]

LOOK_S: Final = 0.5
"""How often a rank that is away is looked for."""

_COUNTERS: Final = (
    "hits_total",
    "misses_total",
    "own_hits_total",
    "corrupted_total",
    "set_blocks_total",
    "dropped_blocks_total",
    "deleted_blocks_total",
    "read_bytes_total",
)

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Who is who. addresses: of every rank, in the same order everywhere. channels_max: to each."""

    rank: int
    addresses: tuple[tuple[str, int], ...]
    bytes_max: int
    secret: str = dataclasses.field(default="", repr=False)
    timeout_s: float = 0.25
    channels_max: int = 4
    use_memory: bool = True
    """Of ranks on the same host; without it their payloads go over links as well."""


class DistributedTier:
    """A `Tier`. Raises OSError if it cannot listen. links: None where all are on this host."""

    name = "distributed"

    def __init__(
        self,
        world: World,
        identity: Identity | bytes,
        *,
        links: Links | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._identity = identity if isinstance(identity, bytes) else identity.digest()
        assert len(self._identity) == KEY_BYTES, len(self._identity)
        self._clock: Clock = clock or SystemClock()
        self._rank = world.rank
        self._seeds = seeds([f"{host}:{port}" for host, port in world.addresses])
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(_COUNTERS, 0)
        self._arena = Arena(self._identity, world.bytes_max)
        try:
            self._server = RankServer(
                self._arena,
                identity=self._identity,
                address=world.addresses[world.rank],
                secret=world.secret,
                timeout_s=world.timeout_s,
                links=links,
            )
        except OSError:
            self._arena.close()
            raise
        plan = ChannelPlan(
            identity=self._identity,
            secret=world.secret,
            timeout_s=world.timeout_s,
            links=links,
            use_memory=world.use_memory,
        )
        self._peers = {
            rank: Peer(plan, address, channels_max=world.channels_max, timeout_s=world.timeout_s)
            for rank, address in enumerate(world.addresses)
            if rank != world.rank
        }
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="bul-rank-look", daemon=True)
        self._thread.start()

    # -- the contract ----------------------------------------------------------------------

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading keys are there now; one round trip to each rank that has some."""
        self._refuse_if_closed()
        own = [own_key(key) for key in keys]
        there = [False] * len(own)
        for rank, positions in self._by_owner(own).items():
            wanted = [own[i] for i in positions]
            for position, here in zip(positions, self._has_on(rank, wanted), strict=False):
                there[position] = here
        return next((i for i, here in enumerate(there) if not here), len(there))

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        """Verified payloads, from whichever rank has them; of a rank that is away none."""
        self._refuse_if_closed()
        own = [own_key(key) for key in keys]
        found: list[Buffer | None] = [None] * len(own)
        torn = own_hits = 0
        for rank, positions in self._by_owner(own).items():
            wanted = [own[i] for i in positions]
            answers = self._get_from(rank, wanted)
            for position, (payload, came) in zip(positions, answers, strict=False):
                found[position] = payload
                torn += came and payload is None
                own_hits += rank == self._rank and payload is not None
        hits = [block for block in found if block is not None]
        self._count(
            hits_total=len(hits),
            misses_total=len(found) - len(hits),
            own_hits_total=own_hits,
            corrupted_total=torn,
            read_bytes_total=sum(map(len, hits)),
        )
        return found

    def set(self, records: Sequence[BlockRecord]) -> int:
        """Store each on its rank; returns how many are there now."""
        self._refuse_if_closed()
        own = [own_key(record.key) for record in records]
        stored = 0
        for rank, positions in self._by_owner(own).items():
            theirs = [records[i] for i in positions]
            keys = [own[i] for i in positions]
            stored += self._set_on(rank, theirs, keys)
        self._count(set_blocks_total=stored, dropped_blocks_total=len(records) - stored)
        return stored

    def delete(self, keys: Sequence[bytes]) -> int:
        """Remove, from whichever rank should have them."""
        self._refuse_if_closed()
        own = [own_key(key) for key in keys]
        deleted = 0
        for rank, positions in self._by_owner(own).items():
            deleted += self._delete_on(rank, [own[i] for i in positions])
        self._count(deleted_blocks_total=deleted)
        return deleted

    def clear(self) -> None:
        """Empty every rank that is there."""
        self._refuse_if_closed()
        self._arena.clear()
        for rank in self._peers:
            self._ask(rank, lambda channel: channel.clear(), lambda: None)

    def stats(self) -> Mapping[str, float]:
        """Counters of this process; blocks and bytes of all ranks that answer."""
        with self._lock:
            totals = {name: float(total) for name, total in self._totals.items()}
        arena = self._arena.stats()
        totals |= {f"own_{name}": float(value) for name, value in arena.items()}
        sums = [(int(arena["blocks"]), int(arena["bytes"]))]
        counts = (
            self._ask(rank, lambda channel: channel.count(), lambda: (0, 0)) for rank in self._peers
        )
        sums.extend(counts)
        totals["blocks"] = float(sum(blocks for blocks, _ in sums))
        totals["bytes"] = float(sum(size for _, size in sums))
        totals["ranks"] = float(1 + len(self._peers))
        totals["ranks_away"] = float(sum(peer.away for peer in self._peers.values()))
        totals["ranks_by_link"] = float(sum(p.way == "link" for p in self._peers.values()))
        totals["ranks_lost_total"] = float(sum(p.lost_total for p in self._peers.values()))
        totals["callers_refused_total"] = float(self._server.refused_total)
        return totals

    def check(self, *, fix: bool = False) -> CheckReport:
        """Read every record of this rank; with `fix`, take the damaged ones out."""
        self._refuse_if_closed()
        keys = self._arena.keys()
        records = zip(keys, self._own(keys), strict=True)
        damaged = [key for key, (payload, came) in records if came and payload is None]
        if fix:
            self._arena.remove(damaged)
        figures = self._arena.stats()
        return CheckReport(
            blocks=int(figures["blocks"]),
            bytes=int(figures["bytes"]),
            problems=tuple(f"block {key.hex()[:12]} is damaged" for key in damaged),
        )

    def close(self) -> None:
        """Hang up; what this rank kept is gone. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        self._server.close()
        for peer in self._peers.values():
            peer.close()
        self._arena.close()

    # -- how -------------------------------------------------------------------------------

    def _by_owner(self, keys: Sequence[bytes]) -> dict[int, list[int]]:
        """Positions of `keys` by the rank that they belong to now."""
        if len(keys) > KEYS_MAX:
            raise TierUnavailable(f"{len(keys)} keys at once, at most {KEYS_MAX}")
        away = {rank for rank, peer in self._peers.items() if peer.away}
        owners: dict[int, list[int]] = {}
        for position, key in enumerate(keys):
            owners.setdefault(owner(key, self._seeds, away), []).append(position)
        return owners

    def _ask(self, rank: int, act: Callable[[Channel], _T], otherwise: Callable[[], _T]) -> _T:
        try:
            return self._peers[rank].call(act)
        except PeerLost:
            return otherwise()

    def _has_on(self, rank: int, keys: Sequence[bytes]) -> Sequence[bool]:
        if rank == self._rank:
            return self._arena.has(keys)
        return self._ask(rank, lambda channel: channel.has(keys), list)

    def _delete_on(self, rank: int, keys: Sequence[bytes]) -> int:
        if rank == self._rank:
            return self._arena.remove(keys)
        return self._ask(rank, lambda channel: channel.delete(keys), int)

    def _own(self, keys: Sequence[bytes]) -> list[tuple[Buffer | None, bool]]:
        now_s, memory = self._clock.wall_s(), self._arena.memory
        found: list[tuple[Buffer | None, bool]] = []
        for key, place in zip(keys, self._arena.look_up(keys), strict=True):
            data = memory.copy(*place) if place is not None else None
            if place is None or data is None:
                found.append((None, False))
                continue
            payload = read_record(data, memory.seed + place[0], key, self._identity, now_s)
            found.append((payload, True))
        return found

    def _get_from(self, rank: int, keys: Sequence[bytes]) -> list[tuple[Buffer | None, bool]]:
        if rank == self._rank:
            return self._own(keys)
        now_s = self._clock.wall_s()
        return self._ask(rank, lambda channel: channel.get(keys, now_s), list)

    def _set_on(self, rank: int, records: Sequence[BlockRecord], keys: Sequence[bytes]) -> int:
        if rank != self._rank:
            return self._ask(rank, lambda channel: channel.set(records, keys), int)
        there = self._arena.has(keys)
        fresh = [
            self._arena.set(record, key)
            for record, key, here in zip(records, keys, there, strict=True)
            if not here
        ]
        return sum(there) + sum(fresh)

    def _look(self) -> None:
        while not self._closed.wait(LOOK_S):
            for peer in self._peers.values():
                if peer.away:
                    peer.look_for()

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self._totals[name] += count

    def _refuse_if_closed(self) -> None:
        if self._closed.is_set():
            raise TierUnavailable("the distributed tier is closed")
