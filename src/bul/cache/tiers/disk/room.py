"""Makes room in a cache folder: whole segments go, oldest first, and what was used since moves on.

Refuses to let anybody else do it at the same time (the folder's lock), and to take a segment that
somebody is still writing.

The policy is CLOCK over segments (Corbato 1968; FIFO with re-insertion in the words of Yang et al.,
"FIFO queues are all you need", SOSP 2023), because it needs no memory for each block: a segment is
as old as its number, and a block "was used since" when the number of the newest segment at its
last use is above that of the segment it lies in. Such blocks are copied into the newest segment, at
most half a segment full of them, the most recently used first, roots before tails. A prefix is
touched whenever one of its continuations is, so the last use of a root is never before that of its
tail, and of an abandoned conversation the tail goes first or together with its root. A used block
whose parent is gone is an orphan: no match can reach it, and it is not carried on.

RAM decides by the `adaptive` policy over single blocks; what that policy demotes arrives here
again, which counts as a use. So the folder keeps what RAM saw more than once within its reach.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bul.blocks.format import RECORD_HEADER_BYTES, BlockHeader, parse_record_header, payload_matches
from bul.blocks.prefix import Buffer
from bul.cache.tiers.disk.counters import Counters
from bul.cache.tiers.disk.folder import Folder, is_own
from bul.cache.tiers.disk.index import DiskIndex, Entry
from bul.cache.tiers.disk.io import DiskIO
from bul.cache.tiers.disk.segments import (
    Segment,
    SegmentFiles,
    SegmentWriter,
    read_footer,
    read_rows,
    scanned_rows,
    seal,
    segment_name,
)
from bul.clock import Clock

__all__ = ["RoomMaker"]

SECOND_CHANCE_SHARE: Final = 0.5
SECOND_CHANCE_S_MAX: Final = 0.5
"""Longest time spent on copying while others wait for the folder's lock."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Victim:
    namespace: Path
    sequence: int
    in_use: bool
    age: float


class RoomMaker:
    """Drops, seals and re-inserts. Every method runs under the folder's lock; raises OSError."""

    def __init__(
        self,
        folder: Folder,
        files: SegmentFiles,
        index: DiskIndex,
        io: DiskIO,
        *,
        bytes_max: int,
        durable: bool,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._folder = folder
        self._files = files
        self._index = index
        self._io = io
        self._bytes_max = bytes_max
        self._durable = durable
        self._clock = clock
        self._counters = counters
        self._sealed: set[int] = set()

    def fits(self, more_bytes: int) -> bool:
        """Whether the folder may grow by so much."""
        return self._folder.used_bytes() + more_bytes <= self._bytes_max

    def make_room(self, more_bytes: int) -> None:
        """Drop segments, without a second chance, until so much fits; ENOSPC if it cannot."""
        while not self.fits(more_bytes):
            if not self.drop_oldest():
                raise OSError(errno.ENOSPC, "nothing is left to evict within disk_bytes_max")

    def drop_oldest(self) -> bool:
        """Drop the oldest segment that nobody writes; `False` if there is none."""
        victim = self._oldest()
        if victim is None:
            return False
        self._drop(victim)
        return True

    def renew(self, spare_bytes: int, writer: SegmentWriter) -> None:
        """Evict until `spare_bytes` are free again, carrying used blocks into `writer`."""
        limit = writer.end + int(writer.size_bytes * SECOND_CHANCE_SHARE)
        deadline_s = self._clock.now_s() + SECOND_CHANCE_S_MAX
        while not self.fits(spare_bytes):
            victim = self._oldest()
            if victim is None:
                return
            if victim.namespace == self._folder.path:
                self._carry_on(victim.sequence, writer, limit, deadline_s)
            self._drop(victim)

    # -- who goes --------------------------------------------------------------------------

    def _oldest(self) -> _Victim | None:
        """Namespaces that nobody has open go first, then the oldest segment of all."""
        for namespace in self._folder.namespaces():
            if namespace != self._folder.path and not self._folder.in_use(namespace):
                oldest = next(iter(self._folder.sequences(namespace)), None)
                if oldest is not None:
                    return _Victim(namespace, oldest, in_use=False, age=0.0)
                self._remove_namespace(namespace)
        victims = list(self._oldest_in_use())
        return min(victims, key=lambda victim: victim.age, default=None)

    def _oldest_in_use(self) -> Iterator[_Victim]:
        for namespace in self._folder.namespaces():
            for sequence in self._folder.sequences(namespace):
                if self._is_idle(namespace, sequence):
                    path = namespace / segment_name(sequence)
                    age = self._io.stat(path).st_mtime
                    yield _Victim(namespace, sequence, in_use=True, age=age)
                    break

    def _is_idle(self, namespace: Path, sequence: int) -> bool:
        """Whether no process writes the segment (its writer would hold the lock on it)."""
        own = namespace == self._folder.path
        if own and sequence in self._sealed:
            return True
        try:
            handle = self._io.open(namespace / segment_name(sequence), os.O_RDONLY)
            idle = self._io.try_lock(handle.fd, shared=True)
            handle.close()
        except OSError:
            return False
        if idle and own:
            self._sealed.add(sequence)
        return idle

    def _drop(self, victim: _Victim) -> None:
        self._folder.drop(victim.sequence, victim.namespace)
        self._counters.add("evicted_segments_total")
        if victim.namespace == self._folder.path:
            self._sealed.discard(victim.sequence)
            self._folder.changed()
            self._files.forget(self._folder.live)
        elif victim.in_use:
            self._folder.changed_elsewhere(victim.namespace)

    def _remove_namespace(self, namespace: Path) -> None:
        """The rest of an identity that nobody uses and that has no segments left."""
        with contextlib.suppress(OSError):
            for name in self._io.files(namespace):
                if is_own(name):
                    self._io.unlink(namespace / name)
            self._io.rmdir(namespace)

    # -- what moves on ---------------------------------------------------------------------

    def _carry_on(
        self, sequence: int, writer: SegmentWriter, limit: int, deadline_s: float
    ) -> None:
        segment = self._files.open(sequence)
        if segment is None or segment.sequence == writer.sequence:
            return
        rows = read_rows(self._io, segment)
        if rows is None:
            rows = scanned_rows(self._io, segment)[0]
        used, cold = self._split(sequence, rows, deadline_s)
        used.sort(key=lambda entry_key: (-entry_key[0].last_use, entry_key[0].offset))
        for entry, key in used:
            if self._clock.now_s() >= deadline_s or not self._copy(
                segment, key, entry, writer, limit
            ):
                cold.append((entry, key))
        if self._durable:
            writer.sync()
        with self._index.locked():
            for entry, key in cold:
                self._index.remove(key, sequence, entry.offset)
        self._counters.add("evicted_blocks_total", len(cold))

    def _split(
        self, sequence: int, rows: npt.NDArray[np.void], deadline_s: float
    ) -> tuple[list[tuple[Entry, bytes]], list[tuple[Entry, bytes]]]:
        used: list[tuple[Entry, bytes]] = []
        cold: list[tuple[Entry, bytes]] = []
        now_s = self._clock.wall_s()
        for row in rows:
            if self._clock.now_s() >= deadline_s:
                break
            key = row["key"].tobytes()
            entry = self._index.lookup(key)
            if entry is None or (entry.sequence, entry.offset) != (sequence, int(row["offset"])):
                continue
            fresh = not entry.expires_s or entry.expires_s > now_s
            (used if entry.last_use > sequence and fresh else cold).append((entry, key))
        return used, cold

    def _copy(
        self, segment: Segment, key: bytes, entry: Entry, writer: SegmentWriter, limit: int
    ) -> bool:
        """Copy one verified record; `False` if it is not worth it or does not fit."""
        fits = writer.end + entry.record_bytes <= limit and writer.room_for(entry.record_bytes)
        if not fits:
            return False
        record = self._verified(segment, key, entry)
        if record is None or self._is_orphan(record[0]):
            return False
        with self._index.locked():
            current = self._index.lookup(key)
            if current is None or current[1:3] != entry[1:3]:
                return True
            [offset] = writer.append([record])
            moved = entry._replace(
                sequence=writer.sequence, offset=offset, last_use=writer.sequence
            )
            self._index.insert(key, moved, self._folder.live, lambda _: False)
        self._counters.add("reinserted_blocks_total")
        return True

    def _verified(
        self, segment: Segment, key: bytes, entry: Entry
    ) -> tuple[BlockHeader, Buffer] | None:
        data = self._io.read_exact(segment.handle.fd, entry.record_bytes, entry.offset)
        header = parse_record_header(data, segment.seed + entry.offset)
        if header is None or header.dead or header.key != key:
            return None
        payload = memoryview(data)[RECORD_HEADER_BYTES:][: header.stored_bytes]
        return (header, payload) if payload_matches(header, payload) else None

    def _is_orphan(self, header: BlockHeader) -> bool:
        if not header.parent:
            return False
        parent = self._index.lookup(header.parent)
        return parent is None or parent.sequence not in self._folder.live

    # -- what the dead left ----------------------------------------------------------------

    def seal_abandoned(self) -> None:
        """Seal the segments whose writers died: cut torn tails, give reservations back."""
        for sequence in self._folder.sequences(self._folder.path):
            if sequence not in self._sealed:
                with contextlib.suppress(FileNotFoundError):
                    self._seal_if_abandoned(sequence)

    def _seal_if_abandoned(self, sequence: int) -> None:
        segment = self._files.open(sequence)
        if segment is None:
            return
        if read_footer(self._io, segment) is None:
            handle = self._io.open(self._files.path(sequence), os.O_RDWR)
            try:
                if not self._io.try_lock(handle.fd):
                    return
                rows, end = scanned_rows(self._io, segment)
                if not len(rows):
                    self._drop(_Victim(self._folder.path, sequence, in_use=True, age=0.0))
                    return
                seal(self._io, handle.fd, segment.seed, end, rows, durable=self._durable)
            finally:
                handle.close()
        self._sealed.add(sequence)
