"""The write side of one process: its open segment, when it is synced, and when the next begins.

Refuses to retry for ever: after a failure no new segment is tried for a second, so that a full or
broken disk costs a counter per dropped block and not a scan of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import threading
from collections.abc import Sequence
from typing import Final

from bul.blocks.format import (
    ALIGN_BYTES,
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    TOC_DTYPE,
    BlockHeader,
    SegmentHeader,
)
from bul.blocks.prefix import Buffer
from bul.cache.tiers.disk.counters import Counters
from bul.cache.tiers.disk.folder import Folder
from bul.cache.tiers.disk.io import DiskIO
from bul.cache.tiers.disk.room import RoomMaker
from bul.cache.tiers.disk.segments import SegmentFiles, SegmentWriter
from bul.clock import Clock

__all__ = ["Appender", "segment_bytes_for"]

MIB: Final = 1 << 20
RETRY_S: Final = 1.0
BATCH_BYTES_MAX: Final = 64 * MIB
_ONE_RECORD_OVERHEAD: Final = (
    SEGMENT_HEADER_BYTES + FOOTER_BYTES + 2 * ALIGN_BYTES + 2 * TOC_DTYPE.itemsize
)


def segment_bytes_for(bytes_max: int) -> int:
    """64 MiB; less in a small folder (a 16th of it), more in a large one (1 GiB from 1 TiB on).

    A 16th, because a folder loses at most one segment for each process that writes; at most about
    a thousand files, because making room looks at each.
    """
    return max(64 << 10, min(bytes_max // 16, max(64 * MIB, min(bytes_max // 1024, 1024 * MIB))))


class Appender:
    """Appends batches. Thread-safe."""

    def __init__(
        self,
        folder: Folder,
        files: SegmentFiles,
        room: RoomMaker,
        io: DiskIO,
        *,
        identity: bytes,
        bytes_max: int,
        fsync: str,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._folder = folder
        self._files = files
        self._room = room
        self._io = io
        self._identity = identity
        self._bytes_max = bytes_max
        self._fsync = fsync
        self._durable = fsync != "none"
        self._clock = clock
        self._counters = counters
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._writer: SegmentWriter | None = None
        self._retry_at_s = float("-inf")
        self.segment_bytes = segment_bytes_for(bytes_max)

    def append(self, records: Sequence[tuple[BlockHeader, Buffer]]) -> list[tuple[int, int]]:
        """Write the records; returns (segment, offset) of each, durable under fsync "always".

        Fewer places than records: the rest failed. Raises OSError if all of them did.
        """
        places: list[tuple[int, int]] = []
        ends: dict[SegmentWriter, int] = {}
        with self._lock:
            try:
                while len(places) < len(records):
                    writer, added = self._append_some(records[len(places) :])
                    places += added
                    ends[writer] = writer.end
            except OSError:
                if not places:
                    raise
                self._counters.add("io_errors_total")
        if self._fsync == "always":
            self._sync_all(ends, records, places)
        return places

    def _append_some(
        self, records: Sequence[tuple[BlockHeader, Buffer]]
    ) -> tuple[SegmentWriter, list[tuple[int, int]]]:
        """As many of the records as go into one segment and one batch."""
        writer = self._writer_for(records[0][0].record_bytes)
        try:
            offsets = writer.append(records[: self._batch_end(writer, records)])
        except OSError:
            self._abandon(writer)
            raise
        return writer, [(writer.sequence, offset) for offset in offsets]

    def _sync_all(
        self,
        ends: dict[SegmentWriter, int],
        records: Sequence[tuple[BlockHeader, Buffer]],
        places: Sequence[tuple[int, int]],
    ) -> None:
        try:
            for writer, end in ends.items():
                self._sync_up_to(writer, end)
        except OSError:
            # Not acknowledged: must not come up in a rebuild after a later delete.
            with contextlib.suppress(OSError):
                for (header, _), (sequence, offset) in zip(records, places, strict=False):
                    self._files.mark_dead(sequence, offset, header.key)
            raise

    def sync(self) -> None:
        """Make everything appended so far durable (policy "interval")."""
        writer = self._writer
        if writer is not None:
            self._sync_up_to(writer, writer.end)

    def close(self) -> None:
        """Seal the open segment."""
        with self._lock:
            self._seal_current()

    def forget(self) -> None:
        """The open segment was removed with all others."""
        with self._lock:
            self._leave()

    def _sync_up_to(self, writer: SegmentWriter, end: int) -> None:
        try:
            # Group commit: who waits here often finds that another's sync covered its bytes too.
            with self._sync_lock:
                if writer.synced_end < end:
                    writer.sync()
                    self._counters.add("syncs_total")
        except OSError:
            with self._lock:
                self._abandon(writer)
            raise

    def _abandon(self, writer: SegmentWriter) -> None:
        """Leave a segment that failed; what of it was acknowledged stays readable."""
        if self._writer is writer:
            self._writer = None
        self._finish(writer)

    def _finish(self, writer: SegmentWriter) -> None:
        """Seal and let go. Under the lock; nobody may be syncing what is being closed."""
        with self._sync_lock, contextlib.suppress(OSError):
            # Without a table of contents the segment is scanned instead; nothing is lost.
            writer.seal(durable=self._durable)

    def _batch_end(
        self, writer: SegmentWriter, records: Sequence[tuple[BlockHeader, Buffer]]
    ) -> int:
        """As many records as fit into the segment and into one batch; at least one."""
        total, stop = 0, 0
        while stop < len(records):
            total += records[stop][0].record_bytes + TOC_DTYPE.itemsize
            if stop and (total > BATCH_BYTES_MAX or not writer.room_for(total)):
                break
            stop += 1
        return stop

    def _writer_for(self, record_bytes: int) -> SegmentWriter:
        writer = self._writer
        if writer is not None and writer.sequence not in self._folder.live:
            self._leave()
            writer = None
        if writer is not None and writer.room_for(record_bytes):
            return writer
        if self._clock.now_s() < self._retry_at_s:
            raise OSError(errno.EAGAIN, "waiting after a failure to make a segment")
        size_bytes = max(self.segment_bytes, record_bytes + _ONE_RECORD_OVERHEAD)
        if size_bytes > max(self.segment_bytes, self._bytes_max // 2):
            raise OSError(errno.EFBIG, "a block of more than half of disk_bytes_max")
        try:
            return self._next_segment(size_bytes)
        except OSError:
            self._retry_at_s = self._clock.now_s() + RETRY_S
            raise

    def _next_segment(self, size_bytes: int) -> SegmentWriter:
        with self._folder.locked():
            self._seal_current()
            self._room.make_room(size_bytes)
            writer = self._create(size_bytes)
            self._folder.changed(following=writer.sequence + 1)
            self._writer = writer
            self._room.renew(self.segment_bytes, writer)
        return writer

    def _create(self, size_bytes: int) -> SegmentWriter:
        while True:
            sequence = self._folder.next_sequence()
            header = SegmentHeader(
                sequence=sequence,
                seed=secrets.randbits(64),
                identity=self._identity,
                created_wall_ms=int(self._clock.wall_s() * 1000),
            )
            path = self._files.path(sequence)
            try:
                return SegmentWriter(path, header, size_bytes, self._io, durable=self._durable)
            except OSError as error:
                # The file system is fuller than our budget knows: live within what is there.
                if error.errno != errno.ENOSPC or not self._room.drop_oldest():
                    raise

    def _leave(self) -> None:
        """Close a segment that somebody removed. Under the lock."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._sync_lock:
                writer.handle.close()

    def _seal_current(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._finish(writer)
