"""The blocks in this process's RAM: payloads by key, bounded in blocks and in bytes.

It refuses to judge (the eviction policy does), to lock (its owner holds one lock around every call)
and to read a clock (time is an argument). It keeps the buffers that it is given and never copies or
changes them.

The bound in bytes becomes a capacity in blocks, because a policy counts blocks: the room that is
left by general values, divided by the mean size of a block. Blocks of one model have one size, so
that is exact in practice; `_squeeze` makes it exact for any mixture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from bul.blocks.prefix import Buffer, RequestFacts
from bul.cache.eviction.contract import Access, EvictionPolicy

__all__ = ["Entry", "Resident"]

GROW_SHARE = 16
"""Capacity grows only by more than 1/16, so that a wandering mean does not resize all day."""


class Entry(msgspec.Struct, gc=False, eq=False):
    """One resident block. `parent` is the key before it, b"" for a chain's first block.

    since_s, expires_s: on the owner's clock; 0.0 never expires. queued: bit i is set once slower
    tier i has it or has it in its queue. children: resident blocks behind it. holds: matches that
    use it as their deepest block. ahead: 1 + the lane that it was loaded from before anybody asked,
    0 once somebody did. It refers to no other entry: the garbage collector need not know.
    """

    payload: Buffer
    parent: bytes = b""
    expires_s: float = 0.0
    tenant: str = ""
    queued: int = 0
    since_s: float = 0.0
    payload_bytes: int = 0
    children: int = 0
    holds: int = 0
    ahead: int = 0

    def __post_init__(self) -> None:
        payload = self.payload
        self.payload_bytes = payload.nbytes if isinstance(payload, memoryview) else len(payload)


class Resident:
    """Blocks by key. `blocks_max` comes from `max_tokens`; `bytes_max` is shared with values.

    evicted: `None`, or a list that collects what was evicted until its owner empties it. on_use:
    called with path and tenant after each use. watcher: called with each key that comes (True) or
    leaves, under the owner's lock: it may take note, and nothing else.
    """

    def __init__(
        self, policy: EvictionPolicy, *, blocks_max: int, bytes_max: int, block_tokens: int
    ) -> None:
        self._policy = policy
        self._blocks_max = blocks_max
        self._bytes_max = bytes_max
        self._block_tokens = block_tokens
        self._reserved_bytes = 0
        self.entries: dict[bytes, Entry] = {}
        self.evicted: list[tuple[bytes, Entry]] | None = None
        self.tenant_blocks: dict[str, int] = {}
        self.on_use: Callable[[Sequence[bytes], str], None] | None = None
        self.watcher: Callable[[bytes, bool], None] | None = None
        self.bytes = 0
        self.evictions_total = 0
        self.refused_total = 0

    def lookup(self, keys: Sequence[bytes], start: int, now_s: float) -> list[Entry]:
        """Entries of the longest run keys[start:] that is here and not expired. Changes nothing."""
        entries = self.entries
        found: list[Entry] = []
        for position in range(start, len(keys)):
            entry = entries.get(keys[position])
            if entry is None or (entry.expires_s and now_s >= entry.expires_s):
                break
            found.append(entry)
        return found

    def touch(self, path: Sequence[bytes], facts: RequestFacts, now_s: float) -> None:
        """A request used `path`, all of it resident."""
        if path:
            self._drop(self._policy.access(self._access(path, 0, facts, now_s)))
            if self.on_use is not None:
                self.on_use(path, facts.tenant)

    def admit(
        self,
        path: Sequence[bytes],
        new: Sequence[Entry],
        facts: RequestFacts,
        *,
        touched: int,
        now_s: float,
    ) -> None:
        """Offer `new` as the end of `path`; the policy may take fewer, and others may leave.

        Without its parent a block is refused (it could never match), and so is one that is larger
        than the whole budget: admitting it would empty the cache for nothing.
        """
        first = len(path) - len(new)
        if first and path[first - 1] not in self.entries:
            self.refused_total += len(new)
            return
        room = self._bytes_max - self._reserved_bytes
        fitting = next((i for i, e in enumerate(new) if e.payload_bytes > room), len(new))
        self.refused_total += len(new) - fitting
        new = new[:fitting]
        path = path[: first + fitting]
        if not path:
            return
        self._fit(new)
        gone = self._policy.access(self._access(path, touched, facts, now_s))
        for key, entry in zip(path[first:], new, strict=True):
            old = self.entries.get(key)
            if old is not None:  # the first one stays, since matches may hold it: equal key, bytes
                old.expires_s = entry.expires_s
                continue
            self._insert(key, entry)
        self._drop(gone)
        self._squeeze()
        if self.on_use is not None:
            self.on_use(path, facts.tenant)

    def admit_where_room(
        self, path: Sequence[bytes], new: Sequence[Entry], facts: RequestFacts, *, now_s: float
    ) -> None:
        """Offer `new` as the end of `path`, which nobody asked for: no use, and nothing leaves."""
        first = len(path) - len(new)
        room = self.room_blocks()
        path, new = path[: first + room], new[:room]
        if not new or (first and path[first - 1] not in self.entries):
            return
        access = self._access(path, 0, facts, now_s)
        refused = set(self._policy.access(dataclasses.replace(access, speculative=True)))
        for key, entry in zip(path[first:], new, strict=True):
            if key not in refused and key not in self.entries:
                self._insert(key, entry)

    def room_blocks(self) -> int:
        """How many more blocks of the mean size fit without an eviction."""
        blocks = len(self.entries)
        room = self._policy.capacity - blocks
        if blocks:
            left = self._bytes_max - self._reserved_bytes - self.bytes
            room = min(room, left * blocks // max(1, self.bytes))
        return max(0, room)

    def finish(self, path: Sequence[bytes], output_tokens: int) -> None:
        """Pass the end of a request on to the policy."""
        self._policy.finish(path, output_tokens)

    def hold(self, key: bytes) -> Entry:
        """`key` must not leave, nor its ancestors; returns the entry to give to `unhold`."""
        self._policy.hold(key)
        entry = self.entries[key]
        entry.holds += 1
        return entry

    def unhold(self, key: bytes, entry: Entry) -> None:
        """Undo one `hold`. A block that was removed meanwhile, even if it came back, is no more."""
        if self.entries.get(key) is entry:
            self._policy.unhold(key)
            entry.holds -= 1
            self._squeeze()

    def evict(self, key: bytes) -> int:
        """Evict a leaf that nobody holds; returns how many blocks left."""
        entry = self.entries[key]
        assert not entry.children, "only leaves leave"
        assert not entry.holds, "what is held stays"
        gone = self._policy.remove(key)
        self._drop(gone)
        return len(gone)

    def remove(self, key: bytes) -> int:
        """Take a block and all its descendants out, held or not; returns how many."""
        gone = self._policy.remove(key)
        self._drop(gone, evicted=False)
        return len(gone)

    def clear(self) -> int:
        """Take everything out; returns how many blocks that was."""
        count = len(self.entries)
        for key in list(self.entries):
            if key in self.entries:
                self._drop(self._policy.remove(key), evicted=False)
        return count

    def reserve(self, reserved_bytes: int) -> None:
        """General values now take `reserved_bytes` of the budget."""
        self._reserved_bytes = reserved_bytes
        self._fit(())
        self._squeeze()

    @property
    def capacity_blocks(self) -> int:
        """How many blocks the policy may keep now."""
        return self._policy.capacity

    def stats(self, now_s: float) -> Mapping[str, float]:
        """Ages are of the blocks that came first and last."""
        ages: dict[str, float] = {}
        if self.entries:  # in the order in which they came
            for name, keys in (("oldest", self.entries), ("newest", reversed(self.entries))):
                entry = self.entries[next(iter(keys))]
                ages[f"{name}_block_age_s"] = max(0.0, now_s - entry.since_s)
        return {
            **ages,
            "blocks": len(self.entries),
            "bytes": self.bytes,
            "capacity_blocks": self._policy.capacity,
            "evictions_total": self.evictions_total,
            "refused_total": self.refused_total,
        }

    def _access(
        self, path: Sequence[bytes], touched: int, facts: RequestFacts, now_s: float
    ) -> Access:
        return Access(
            path=path,
            now_s=now_s,
            block_tokens=self._block_tokens,
            tenant=facts.tenant,
            session=facts.session,
            touched=touched,
        )

    def _fit(self, new: Sequence[Entry]) -> None:
        """Set the policy's capacity from the bytes that are left and the mean block."""
        blocks = len(self.entries) + len(new)
        size = self.bytes + sum(entry.payload_bytes for entry in new)
        room = self._bytes_max - self._reserved_bytes
        capacity = self._blocks_max
        if size:
            capacity = min(capacity, max(1, room * blocks // size))
        current = self._policy.capacity
        grown = capacity == self._blocks_max or capacity - current > current // GROW_SHARE
        if capacity < current or (capacity > current and grown):
            self._drop(self._policy.resize(capacity))

    def _squeeze(self) -> None:
        """Evict until the bytes fit; held blocks may keep them above for a while."""
        room = self._bytes_max - self._reserved_bytes
        if self.bytes <= room and len(self.entries) <= self._policy.capacity:
            return
        capacity = self._policy.capacity
        while self.bytes > room and self.entries:
            gone = self._policy.resize(max(1, min(capacity, len(self.entries) - 1)))
            if not gone:
                break
            self._drop(gone)
        self._drop(self._policy.resize(capacity))

    def _drop(self, gone: Iterable[object], *, evicted: bool = True) -> None:
        for key in gone:
            assert isinstance(key, bytes)
            entry = self.entries.pop(key, None)
            if entry is None:
                continue
            self._forget(entry)
            if self.watcher is not None:
                self.watcher(key, False)
            if evicted:
                self.evictions_total += 1
                if self.evicted is not None:
                    self.evicted.append((key, entry))

    def _insert(self, key: bytes, entry: Entry) -> None:
        self.entries[key] = entry
        self.bytes += entry.payload_bytes
        self.tenant_blocks[entry.tenant] = self.tenant_blocks.get(entry.tenant, 0) + 1
        parent = self.entries.get(entry.parent)
        if parent is not None:
            parent.children += 1
        if self.watcher is not None:
            self.watcher(key, True)

    def _forget(self, entry: Entry) -> None:
        self.bytes -= entry.payload_bytes
        self.tenant_blocks[entry.tenant] -= 1
        if not self.tenant_blocks[entry.tenant]:
            del self.tenant_blocks[entry.tenant]
        parent = self.entries.get(entry.parent)
        if parent is not None:
            parent.children -= 1
