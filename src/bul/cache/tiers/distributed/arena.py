"""What one rank keeps for all: records in a ring of shared memory, the oldest overwritten first.

Refuses to publish a record that is not sound, and to trust what lies in it: another process writes
and reads there, and may die while it does. A record is header (192) and payload as on disk, and its
header is sealed with the ring's seed plus its offset; who reads a record that is being overwritten
sees a checksum that does not hold.

    reserve(size) -> offset   room is made: the oldest records there are forgotten
    (the bytes are written, by whoever has them)
    publish(key, offset)      checked, then found by `look_up`

A record that was read since it was written is written once more when the ring comes round to it
(second chance, as in CLOCK), one per reservation, so that a ring of nothing but such still moves.

The memory is a memfd: other processes of this host and user open it by /proc, and the kernel frees
it with the last of them, also after kill -9.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from bul.blocks.format import (
    ALIGN_BYTES,
    RECORD_HEADER_BYTES,
    BlockHeader,
    encode_record_header,
    padded,
    parse_record_header,
    payload_checksum,
    payload_matches,
    sound_payload,
)
from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord

__all__ = ["NONCE_BYTES", "WIRE_PLACE", "Arena", "Memory", "encode", "read_record"]

NONCE_BYTES: Final = 32
WIRE_PLACE: Final = int.from_bytes(b"BULwires", "little")
"""Seals headers while they travel: a record out of a ring or a segment does not parse there."""
_START: Final = ALIGN_BYTES
"""Of the first record; before it lies the nonce by which a reader knows the memory."""


class Memory:
    """A mapped memfd, by its owner or by a neighbour. Raises OSError, ValueError if it is not one.

    nonce: 32 bytes at its beginning; the last eight of them seed the records' headers.
    """

    def __init__(self, fd: int, size: int, nonce: bytes) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size)
        self.view = memoryview(self._map)
        if self.view[:NONCE_BYTES] != nonce:
            self.close()
            raise ValueError("this is other memory than was meant")
        self.seed = int.from_bytes(nonce[-8:], "little")

    @classmethod
    def make(cls, size: int) -> tuple[Memory, bytes]:
        """New memory of `size` bytes, and its nonce."""
        fd = os.memfd_create("bul-rank", os.MFD_CLOEXEC)
        nonce = secrets.token_bytes(NONCE_BYTES)
        os.ftruncate(fd, size)
        os.pwrite(fd, nonce, 0)
        return cls(fd, size, nonce), nonce

    @classmethod
    def of_neighbour(cls, pid: int, fd: int, size: int, nonce: bytes) -> Memory:
        """Another process's, if it is on this host and its memory may be opened."""
        own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(own, min(size, os.fstat(own).st_size), nonce)
        except BaseException:
            os.close(own)
            raise

    def copy(self, offset: int, size: int) -> bytes | None:
        """Bytes that may be overwritten meanwhile; `None` if they are not within."""
        if not _START <= offset <= offset + size <= self.size:
            return None
        return bytes(self.view[offset : offset + size])

    def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        """`parts` one after the other; the caller has reserved the room."""
        for part in parts:
            data = memoryview(part).cast("B") if len(part) else memoryview(b"")
            self.view[offset : offset + data.nbytes] = data
            offset += data.nbytes

    def close(self) -> None:
        """Unmap and close. A copy that is under way keeps the map until it is done."""
        with contextlib.suppress(BufferError):
            self.view.release()
            self._map.close()
        os.close(self.fd)


def encode(record: BlockRecord, key: bytes, identity: bytes, place: int) -> tuple[bytes, Buffer]:
    """Header and payload of a record that will lie at `place` (seed plus offset)."""
    payload = record.payload
    if isinstance(payload, memoryview):
        payload = payload.cast("B")
    header = BlockHeader(
        key=key,
        parent=record.parent if len(record.parent) == len(key) else b"",
        identity=identity,
        tokens=record.tokens,
        stored_bytes=len(payload),
        raw_bytes=len(payload),
        checksum=payload_checksum(payload),
        expires_wall_ms=int(record.expires_wall_s * 1000),
    )
    return encode_record_header(header, place), payload


def read_record(
    data: bytes | bytearray, place: int, key: bytes, identity: bytes, now_wall_s: float
) -> Buffer | None:
    """The payload of a copied record; `None` if it is another one, torn, damaged or too old."""
    found = sound_payload(data, place, key, identity)
    if found is None:
        return None
    payload, encoding, _, expires_wall_ms = found
    if encoding or (expires_wall_ms and now_wall_s * 1000 >= expires_wall_ms):
        return None
    return payload


class _Entry:
    __slots__ = ("alive", "key", "offset", "size", "used")

    def __init__(self, offset: int, size: int) -> None:
        self.offset = offset
        self.size = size
        self.key: bytes | None = None
        self.used = False
        self.alive = True


_Again = tuple[BlockHeader, bytes]


class Arena:
    """`bytes_max` in all, of records of one identity. Any thread."""

    def __init__(self, identity: bytes, bytes_max: int) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self.memory, self.nonce = Memory.make(bytes_max)
        self._ring: collections.deque[_Entry] = collections.deque()
        self._by_key: dict[bytes, _Entry] = {}
        self._open: dict[int, _Entry] = {}
        self._head = _START
        self._bytes = 0
        self._evicted_total = self._refused_total = 0

    def look_up(self, keys: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """(offset, size) of each record that is here, which is now a used one."""
        found: list[tuple[int, int] | None] = []
        with self._lock:
            for key in keys:
                entry = self._by_key.get(key)
                if entry is not None:
                    entry.used = True
                found.append(None if entry is None else (entry.offset, entry.size))
        return found

    def has(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each is here; uses none."""
        with self._lock:
            return [key in self._by_key for key in keys]

    def reserve(self, size: int) -> int | None:
        """Where to write a record of `size` bytes; `None` if it is larger than the ring."""
        with self._lock:
            if size < RECORD_HEADER_BYTES or _START + padded(size) > self.memory.size:
                self._refused_total += 1
                return None
            entry, again = self._take(padded(size), second_chance=True)
            self._open[entry.offset] = entry
            if again is not None:
                self._write_again(*again)
            return entry.offset if entry.alive else None

    def publish(self, key: bytes, offset: int, *, sound: bool = False) -> bool:
        """What was written at `offset` is a record of `key` from now on, if it is sound.

        sound: it is known to be, because this process wrote it.
        """
        with self._lock:
            entry = self._open.pop(offset, None)
        if entry is None or not (sound or self._is_sound(key, entry)):
            with self._lock:
                self._refused_total += entry is not None
            return False
        with self._lock:
            if not entry.alive:
                return False  # overwritten before it was finished
            self._enter(key, entry)
        return True

    def set(self, record: BlockRecord, key: bytes) -> bool:
        """Reserve, write and publish, for a record of this process's own."""
        offset = self.reserve(RECORD_HEADER_BYTES + _size(record.payload))
        if offset is None:
            return False
        place = self.memory.seed + offset
        self.memory.write(offset, encode(record, key, self._identity, place))
        return self.publish(key, offset, sound=True)

    def set_from_wire(self, key: bytes, data: bytes | bytearray) -> bool:
        """Keep a record that came over a link, sealed with WIRE_PLACE, if it is sound."""
        header = parse_record_header(data, WIRE_PLACE)
        payload = memoryview(data)[RECORD_HEADER_BYTES:]
        if header is None or (header.key, header.identity) != (key, self._identity):
            return False
        offset = self.reserve(len(data)) if payload_matches(header, payload) else None
        if offset is None:
            return False
        sealed = encode_record_header(header, self.memory.seed + offset)
        self.memory.write(offset, (sealed, payload))
        return self.publish(key, offset, sound=True)

    def for_wire(self, offset: int, size: int) -> bytearray:
        """`size` bytes: the record at a place that `look_up` gave, sealed with WIRE_PLACE.

        One that was overwritten since does not parse, here or there.
        """
        data = bytearray(self.memory.view[offset : offset + size])
        header = parse_record_header(data, self.memory.seed + offset)
        if header is not None:
            data[:RECORD_HEADER_BYTES] = encode_record_header(header, WIRE_PLACE)
        return data

    def remove(self, keys: Sequence[bytes]) -> int:
        """Forget; how many were here."""
        with self._lock:
            return sum(self._forget(key) for key in keys)

    def keys(self) -> list[bytes]:
        """Of every record."""
        with self._lock:
            return list(self._by_key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for key in list(self._by_key):
                self._forget(key)

    def stats(self) -> Mapping[str, float]:
        with self._lock:
            return {
                "blocks": len(self._by_key),
                "bytes": self._bytes,
                "bytes_max": self.memory.size,
                "evictions_total": self._evicted_total,
                "refused_total": self._refused_total,
            }

    def close(self) -> None:
        """Give the memory back; neighbours that have it open keep theirs."""
        self.clear()
        self.memory.close()

    def _is_sound(self, key: bytes, entry: _Entry) -> bool:
        data = self.memory.copy(entry.offset, entry.size) or b""
        header = parse_record_header(data, self.memory.seed + entry.offset)
        if header is None or (header.key, header.identity) != (key, self._identity):
            return False
        payload = memoryview(data)[RECORD_HEADER_BYTES:][: header.stored_bytes]
        return payload_matches(header, payload)

    # -- under the lock ----------------------------------------------------------------------

    def _take(self, size: int, *, second_chance: bool) -> tuple[_Entry, _Again | None]:
        """Room at the head; of what had to go, one used record to write again."""
        again: _Again | None = None
        if self._head + size > self.memory.size:
            while self._ring and self._ring[0].offset >= self._head:
                again = self._evict(again, keep=second_chance)
            self._head = _START
        offset, end = self._head, self._head + size
        while self._ring and offset <= self._ring[0].offset < end:
            again = self._evict(again, keep=second_chance)
        self._head = end
        entry = _Entry(offset, size)
        self._ring.append(entry)
        return entry, again

    def _evict(self, again: _Again | None, *, keep: bool) -> _Again | None:
        entry = self._ring.popleft()
        entry.alive = False
        self._open.pop(entry.offset, None)
        if entry.key is None:
            return again
        self._evicted_total += 1
        del self._by_key[entry.key]
        self._bytes -= entry.size
        if not keep or not entry.used or again is not None:
            return again
        data = bytes(self.memory.view[entry.offset :][: entry.size])
        header = parse_record_header(data, self.memory.seed + entry.offset)
        return None if header is None else (header, data[RECORD_HEADER_BYTES:])

    def _write_again(self, header: BlockHeader, payload: bytes) -> None:
        entry, _ = self._take(RECORD_HEADER_BYTES + len(payload), second_chance=False)
        sealed = encode_record_header(header, self.memory.seed + entry.offset)
        self.memory.write(entry.offset, (sealed, payload))
        self._evicted_total -= 1
        self._enter(header.key, entry)

    def _enter(self, key: bytes, entry: _Entry) -> None:
        self._forget(key)
        entry.key = key
        self._by_key[key] = entry
        self._bytes += entry.size

    def _forget(self, key: bytes) -> bool:
        """The room stays taken until the ring comes round."""
        entry = self._by_key.pop(key, None)
        if entry is None:
            return False
        entry.key = None
        self._bytes -= entry.size
        return True


def _size(payload: Buffer) -> int:
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)
