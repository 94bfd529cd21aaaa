"""The disk tier's index: a hash table in a file, shared by all processes of a folder.

Refuses to be believed: it is a hint about where a record may lie, and the record's own header
decides. That is what keeps it simple: readers take no lock, a torn or stale slot is a miss, and a
file that is damaged, truncated or from another format is thrown away and built again.

Layout: a header of 1 KiB, then buckets of 16 slots of 64 bytes. A key lives in one of two buckets,
named by its first and its second 8 bytes (they are hashes already); it is inserted into the
emptier one, which fills a table to about 95 % before a bucket overflows (Azar, Broder, Karlin and
Upfal, "Balanced allocations", 1994). A look-up is one or two reads of 1 KiB, about 1.5 us each,
whatever the size; an open is one read. At a load of 0.55 to 0.9, 64-byte slots cost 70 to 120 bytes
of page cache for a block, and none of a process's own memory.

Why not LMDB: a damaged LMDB file takes the process down with it, and an index that is only a
hint needs no transactions (docs/decisions/, "The disk index is a hint in a flat file"). Why read()
and not mmap(): an I/O error under a mapping is a SIGBUS, which no Python code survives.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from bul.cache.tiers.disk.io import DiskIO, Handle
from bul.cache.tiers.disk.slots import (
    BUCKET_SLOTS,
    SLOT_BYTES,
    SLOT_DTYPE,
    pieces,
    positions_of,
)

__all__ = ["BUCKETS_MIN", "SLOT_DTYPE", "DiskIndex", "Entry"]

BUCKET_BYTES: Final = SLOT_BYTES * BUCKET_SLOTS
BUCKETS_MIN: Final = 16
OFFSET_MAX: Final = 1 << 62
_BUILD_LOAD: Final = 0.55
_LAST_USE_AT: Final = 32 + 4 + 8 + 4 + 4
_EMPTY: Final = bytes(SLOT_BYTES)
_READ_BYTES: Final = 8 << 20

_HEADER = struct.Struct("<8sQQ32s")
_MAGIC: Final = b"BULINDX\1"
_SLOT = struct.Struct("<32sIQIIII4x")
_PLACE = struct.Struct("<IQIIII")
_SEQUENCES = struct.Struct("<" + "32xI28x" * BUCKET_SLOTS)
_U32 = struct.Struct("<I")

assert _SLOT.size == SLOT_DTYPE.itemsize == SLOT_BYTES


class Entry(NamedTuple):
    """Where a record may lie. position: of the slot; sequence 0 never occurs.

    last_use: the newest segment's number when the block was last used, the tier's clock: it
    moves with what is written, needs no time, and survives restarts and clock jumps.
    """

    position: int
    sequence: int
    offset: int
    record_bytes: int
    tokens: int
    last_use: int
    expires_s: int


def _find(key: bytes, base: int, bucket: bytes) -> Entry | None:
    """The key's entry in a bucket that was read from `base`."""
    at = bucket.find(key)
    while at >= 0:
        if at % SLOT_BYTES == 0 and at + SLOT_BYTES <= len(bucket):
            entry = Entry(base + at, *_PLACE.unpack_from(bucket, at + 32))
            if entry.sequence and entry.offset <= OFFSET_MAX:
                return entry
        at = bucket.find(key, at + 1)
    return None


class DiskIndex:
    """Look-ups without a lock, changes under the index lock. Every method may raise OSError."""

    def __init__(
        self,
        path: Path,
        identity: bytes,
        io: DiskIO,
        lock_timeout_s: float,
        buckets_min: int = BUCKETS_MIN,
    ) -> None:
        """buckets_min: of a new table, 1 KiB each; it grows by half whenever it is full."""
        self._buckets_min = buckets_min
        self._path = path
        self._identity = identity
        self._io = io
        self._lock_timeout_s = lock_timeout_s
        self._threads = threading.Lock()
        self._lock_file = io.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT)
        self._table: tuple[Handle, int] | None = None

    # -- the file --------------------------------------------------------------------------

    def open(self) -> bool:
        """Attach to the file; `False` when there is none that can be used."""
        try:
            handle = self._io.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return False
        head = self._io.pread(handle.fd, BUCKET_BYTES, 0)
        if len(head) < BUCKET_BYTES:
            return False
        body = head[: _HEADER.size]
        magic, buckets, slots, identity = _HEADER.unpack(body)
        good = (
            xxh3_128_digest(body) == head[_HEADER.size : _HEADER.size + 16]
            and magic == _MAGIC
            and slots == BUCKET_SLOTS
            and identity == self._identity
            and self._io.fstat(handle.fd).st_size == (buckets + 1) * BUCKET_BYTES
        )
        if good:
            self._table = (handle, buckets)
        return good

    def reopen_if_replaced(self) -> bool:
        """Follow another process that built a larger table; whether there was one."""
        if self._table is None or self._io.fstat(self._table[0].fd).st_nlink == 0:
            return self.open()
        return False

    def replace(self, slots: npt.NDArray[np.void], buckets_min: int = 0) -> None:
        """Make a new table of these slots (distinct keys) the index. Under the lock.

        Written a few MiB at a time: beside `slots` it takes about 60 bytes of RAM a block.
        """
        buckets = max(
            buckets_min, self._buckets_min, int(len(slots) / (BUCKET_SLOTS * _BUILD_LOAD)) + 1
        )
        body = _HEADER.pack(_MAGIC, buckets, BUCKET_SLOTS, self._identity)
        head = (body + xxh3_128_digest(body)).ljust(BUCKET_BYTES, b"\0")
        temporary = self._path.with_name(self._path.name + ".tmp")
        handle = self._io.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        end = self._io.write_all(handle.fd, [head], 0)
        positions = positions_of(slots, buckets)
        for piece in pieces(slots, positions, buckets):
            end = self._io.write_all(handle.fd, [piece.view(np.uint8).data], end)
        self._io.rename(temporary, self._path)
        self._table = (handle, buckets)
        for slot in slots[positions < 0]:
            packed = slot.tobytes()
            position = self._make_slot(packed[:32])
            if position is not None:
                self._io.write_all(handle.fd, [packed], position)

    def sync(self) -> None:
        """Make the table durable (a clean close)."""
        if self._table is not None:
            self._io.fsync(self._table[0].fd)

    def close(self) -> None:
        self._table = None
        self._lock_file.close()

    @property
    def file_bytes(self) -> int:
        return (self._table[1] + 1) * BUCKET_BYTES if self._table else 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The index lock: threads of this process first, then processes."""
        if not self._threads.acquire(timeout=self._lock_timeout_s):
            raise TimeoutError("the index is locked by another thread")
        try:
            self._io.lock(self._lock_file.fd, self._lock_timeout_s)
            try:
                self.reopen_if_replaced()
                yield
            finally:
                self._io.unlock(self._lock_file.fd)
        finally:
            self._threads.release()

    # -- single keys -----------------------------------------------------------------------

    def lookup(self, key: bytes) -> Entry | None:
        """One or two reads; no lock."""
        table = self._table
        if table is None:
            return None
        handle, buckets = table
        pread, from_bytes = self._io.pread, int.from_bytes
        base = (from_bytes(key[:8], "little") % buckets + 1) * BUCKET_BYTES
        bucket = pread(handle.fd, BUCKET_BYTES, base)
        entry = _find(key, base, bucket) if key in bucket else None
        if entry is not None:
            return entry
        base = (from_bytes(key[8:16], "little") % buckets + 1) * BUCKET_BYTES
        bucket = pread(handle.fd, BUCKET_BYTES, base)
        return _find(key, base, bucket) if key in bucket else None

    def touch(self, entry: Entry, newest: int) -> None:
        """Note a use, at most one write for a block and segment; a race costs one hint."""
        table = self._table
        if table is not None and entry.last_use != newest:
            self._io.pwritev(table[0].fd, [_U32.pack(newest)], entry.position + _LAST_USE_AT)

    def remove(self, key: bytes, sequence: int, offset: int) -> bool:
        """Forget the key if it still points there. Under the lock."""
        entry = self.lookup(key)
        if entry is None or (entry.sequence, entry.offset) != (sequence, offset):
            return False
        assert self._table is not None
        self._io.write_all(self._table[0].fd, [_EMPTY], entry.position)
        return True

    def insert(
        self,
        key: bytes,
        entry: Entry,
        live: Container[int],
        may_grow: Callable[[int], bool],
    ) -> Entry | None:
        """Publish a record (its `position` is ignored); returns what it replaced. Under the lock.

        In a full pair of buckets, a slot of a segment that is gone is taken; else somebody moves to
        the other bucket of his own; else the table grows by half if `may_grow(bytes)`; else the
        least recently used of the pair is forgotten.
        """
        if self._table is None:
            self.replace(np.zeros(0, SLOT_DTYPE))
        position, old = self._place(key, live)
        if position is None:
            position = self._make_slot(key)
        if position is None and may_grow(self.file_bytes * 3 // 2):
            self._grow(live)
            position, old = self._place(key, live)
        if position is None:
            position = self._least_used(key)
        assert self._table is not None
        packed = _SLOT.pack(key, *entry[1:])
        self._io.write_all(self._table[0].fd, [packed], position)
        return old

    def _buckets(self, key: bytes) -> Iterator[tuple[int, bytes]]:
        """(offset, content) of the key's two buckets."""
        assert self._table is not None
        handle, buckets = self._table
        for half in (key[:8], key[8:16]):
            base = (int.from_bytes(half, "little") % buckets + 1) * BUCKET_BYTES
            data = self._io.pread(handle.fd, BUCKET_BYTES, base)
            yield base, data if len(data) == BUCKET_BYTES else data.ljust(BUCKET_BYTES, b"\0")

    def _place(self, key: bytes, live: Container[int]) -> tuple[int | None, Entry | None]:
        """Where the key is, with its entry; else a free slot, if there is one."""
        pair = list(self._buckets(key))
        for base, data in pair:
            old = _find(key, base, data) if key in data else None
            if old is not None:
                return old.position, old
        (base, data), (other_base, other) = pair
        first, second = _SEQUENCES.unpack(data), _SEQUENCES.unpack(other)
        if second.count(0) > first.count(0):
            base, other_base, first, second = other_base, base, second, first
        if 0 in first:
            return base + first.index(0) * SLOT_BYTES, None
        for start, sequences in ((base, first), (other_base, second)):
            for slot, sequence in enumerate(sequences):
                if sequence not in live:
                    return start + slot * SLOT_BYTES, None
        return None, None

    def _make_slot(self, key: bytes) -> int | None:
        """Free a slot of the key's pair by moving its owner to the owner's other bucket."""
        assert self._table is not None
        for base, data in self._buckets(key):
            for at in range(0, BUCKET_BYTES, SLOT_BYTES):
                slot = data[at : at + SLOT_BYTES]
                for other_base, other in self._buckets(slot[:32]):
                    sequences = _SEQUENCES.unpack(other)
                    if other_base != base and 0 in sequences:
                        free = other_base + sequences.index(0) * SLOT_BYTES
                        self._io.write_all(self._table[0].fd, [slot], free)
                        return base + at
        return None

    def _least_used(self, key: bytes) -> int:
        uses = [
            (_U32.unpack_from(data, at + _LAST_USE_AT), base + at)
            for base, data in self._buckets(key)
            for at in range(0, BUCKET_BYTES, SLOT_BYTES)
        ]
        return min(uses)[1]

    # -- all keys --------------------------------------------------------------------------

    def chunks(self) -> Iterator[npt.NDArray[np.void]]:
        """The used slots, a few MiB at a time; a racing write may show torn."""
        table = self._table
        if table is None:
            return
        handle, buckets = table
        offset, end = BUCKET_BYTES, (buckets + 1) * BUCKET_BYTES
        while offset < end:
            data = self._io.read_exact(handle.fd, min(_READ_BYTES, end - offset), offset)
            if not data:
                return
            offset += len(data)
            slots = np.frombuffer(data[: len(data) // SLOT_BYTES * SLOT_BYTES], SLOT_DTYPE)
            yield slots[slots["sequence"] != 0]

    def count(self, live: Iterable[int]) -> int:
        """Entries of the segments `live`."""
        numbers = np.fromiter(live, np.uint32)
        return sum(int(np.isin(slots["sequence"], numbers).sum()) for slots in self.chunks())

    def _grow(self, live: Container[int]) -> None:
        slots = np.concatenate([*self.chunks(), np.zeros(0, SLOT_DTYPE)])
        known = [number for number in np.unique(slots["sequence"]) if int(number) in live]
        slots = slots[np.isin(slots["sequence"], known)]
        assert self._table is not None
        self.replace(slots, buckets_min=self._table[1] * 3 // 2)
