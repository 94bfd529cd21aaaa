"""Segment files: append-only while their writer lives, sealed when full, read by all.

Refuses to read a file whose header is not of this layout version, identity and number (a foreign,
old or swapped file). A writer holds an exclusive flock on its segment: that it can be taken is how
others know that the writer is gone, whatever killed it.

    header | record | record | ... | table of contents | footer        (sealed)
    header | record | record | zeros, already reserved                 (being written)
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bul.blocks.format import (
    ALIGN_BYTES,
    DEAD_MAGIC,
    FOOTER_BYTES,
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    TOC_DTYPE,
    BlockHeader,
    SegmentFooter,
    SegmentHeader,
    encode_footer,
    encode_record_header,
    encode_segment_header,
    parse_footer,
    parse_record_header,
    parse_segment_header,
    payload_checksum,
    payload_matches,
    toc_matches,
)
from bul.blocks.prefix import Buffer
from bul.cache.tiers.disk.io import DiskIO, Handle

__all__ = ["Segment", "SegmentFiles", "SegmentWriter", "read_rows", "scan", "seal", "segment_name"]

EXPIRES_S_MAX: Final = 0xFFFFFFFF
RECORD_BYTES_MAX: Final = 2 << 30
"""Longer payloads are not stored; offsets and lengths then fit the index."""

_HANDLES_MAX: Final = 128
_SCAN_BYTES: Final = 4 << 20
_GATHER_BYTES: Final = 1 << 20
"""Records are gathered into writes of about this size. They are not aligned to pages, and a write
that begins and ends inside a page costs about 6 us more: at 64 kB, as much as the copying itself.
Larger writes gain no more, and a payload should still be in the cache that its checksum filled."""
_SMALL_RECORD_BYTES: Final = 64 << 10
_ZEROS: Final = bytes(ALIGN_BYTES)
_ROW = struct.Struct("<32sQQII8x")
_NAME = re.compile(r"([0-9]{10})\.seg")
_SEAL_ROOM_BYTES: Final = FOOTER_BYTES + ALIGN_BYTES


def segment_name(sequence: int) -> str:
    return f"{sequence:010}.seg"


def sequence_of(name: str) -> int | None:
    """The number in a segment's file name, or `None` for any other name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """An open segment to read from. `seed` places its records."""

    sequence: int
    seed: int
    handle: Handle


class SegmentFiles:
    """Opens segments of one folder and keeps at most 128 open, least recently used out first."""

    def __init__(
        self, folder: Path, identity: bytes, io: DiskIO, *, sync_marks: bool = False
    ) -> None:
        """sync_marks: make a record's end durable too (policy "always")."""
        self._sync_marks = sync_marks
        self._folder = folder
        self._identity = identity
        self._io = io
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Segment] = OrderedDict()

    def path(self, sequence: int) -> Path:
        return self._folder / segment_name(sequence)

    def open(self, sequence: int) -> Segment | None:
        """The segment; `None` if it is gone or refused. Raises OSError for anything else."""
        segment = self._open.get(sequence)
        if segment is not None:
            return segment
        try:
            handle = self._open_handle(self.path(sequence))
        except FileNotFoundError:
            return None
        header = parse_segment_header(self._io.pread(handle.fd, SEGMENT_HEADER_BYTES, 0))
        if header is None or header.sequence != sequence or header.identity != self._identity:
            return None
        segment = Segment(sequence, header.seed, handle)
        with self._lock:
            self._open[sequence] = segment
            while len(self._open) > _HANDLES_MAX:
                self._open.popitem(last=False)
        return segment

    def _open_handle(self, path: Path) -> Handle:
        try:
            return self._io.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise
        except OSError:
            # Perhaps out of descriptors: give ours back and try once more.
            self.forget(None)
            return self._io.open(path, os.O_RDONLY)

    def forget(self, live: set[int] | None) -> None:
        """Close what is not in `live`; with `None`, everything. Readers keep theirs."""
        with self._lock:
            for sequence in [s for s in self._open if live is None or s not in live]:
                del self._open[sequence]

    def mark_dead(self, sequence: int, offset: int, key: bytes) -> None:
        """Take a record back in place, so that no rebuild brings it up again."""
        segment = self.open(sequence)
        if segment is None:
            return
        head = self._io.pread(segment.handle.fd, RECORD_HEADER_BYTES, offset)
        header = parse_record_header(head, segment.seed + offset)
        if header is not None and header.key == key and not header.dead:
            handle = self._io.open(self.path(sequence), os.O_WRONLY)
            # The name may meanwhile be another file's: never write into that one.
            if self._io.fstat(handle.fd).st_ino == self._io.fstat(segment.handle.fd).st_ino:
                self._io.write_all(handle.fd, [DEAD_MAGIC], offset)
                if self._sync_marks:
                    self._io.fdatasync(handle.fd)
            handle.close()


class SegmentWriter:
    """Appends records to one new segment. Not thread-safe: the tier's write lock is over it."""

    def __init__(
        self, path: Path, header: SegmentHeader, size_bytes: int, io: DiskIO, *, durable: bool
    ) -> None:
        """Creates the file and reserves `size_bytes`; on an error nothing is left behind."""
        self.sequence = header.sequence
        self.seed = header.seed
        self.size_bytes = size_bytes
        self._io = io
        self._rows = bytearray()
        self._failed = False
        self.handle = io.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            assert io.try_lock(self.handle.fd), "a new segment cannot be locked by another"
            io.allocate(self.handle.fd, size_bytes)
            self.end = io.write_all(self.handle.fd, [encode_segment_header(header)], 0)
            if durable:
                io.fsync(self.handle.fd)
                io.sync_folder(path.parent)
        except OSError:
            self.handle.close()
            io.unlink(path)
            raise
        self.synced_end = self.end

    def room_for(self, record_bytes: int) -> bool:
        """Whether a record fits beside the table of contents that the seal will add."""
        rows = len(self._rows) + 2 * TOC_DTYPE.itemsize
        return self.end + record_bytes + rows + _SEAL_ROOM_BYTES <= self.size_bytes

    def append(self, records: Sequence[tuple[BlockHeader, Buffer]]) -> list[int]:
        """Write the records, filling in their checksums; returns their offsets.

        A payload is summed right before it is written, and written before the next one is summed:
        so it crosses the processor's cache once, not twice. After an error nothing counts: the
        next append starts at the same place.
        """
        offset = written = self.end
        offsets: list[int] = []
        buffers: list[Buffer] = []
        rows = bytearray()
        for header, payload in records:
            record_bytes = header.record_bytes
            offsets.append(offset)
            checksum = payload_checksum(payload)
            buffers += (encode_record_header(header, self.seed + offset, checksum), payload)
            padding = record_bytes - RECORD_HEADER_BYTES - header.stored_bytes
            if padding:
                buffers.append(_ZEROS[:padding])
            rows += toc_row(header, offset)
            offset += record_bytes
            if offset - written >= _GATHER_BYTES:
                written = self._io.write_all(self.handle.fd, buffers, written)
                buffers = []
        self.end = self._io.write_all(self.handle.fd, buffers, written) if buffers else written
        self._rows += rows
        return offsets

    def sync(self) -> None:
        """Make everything appended so far durable. After a failure it never claims to be again:
        the kernel may have thrown the pages away, and a second fsync would say "done".
        """
        if self._failed or self.handle.fd < 0:
            raise OSError(errno.EIO, "the segment was given up")
        end = self.end
        try:
            self._io.fdatasync(self.handle.fd)
        except OSError:
            self._failed = True
            raise
        self.synced_end = end

    def seal(self, *, durable: bool) -> None:
        """Write the table of contents, give the rest of the reservation back, let go."""
        if self.handle.fd < 0:
            return
        try:
            rows = np.frombuffer(bytes(self._rows), TOC_DTYPE)
            seal(self._io, self.handle.fd, self.seed, self.end, rows, durable=durable)
            if durable and not self._failed:
                self.synced_end = self.end
        except OSError:
            self._failed = True
            raise
        finally:
            self.handle.close()


def toc_row(header: BlockHeader, offset: int) -> bytes:
    """The record's row in the table of contents."""
    expires_s = min(-(-header.expires_wall_ms // 1000), EXPIRES_S_MAX)
    return _ROW.pack(header.key, offset, header.record_bytes, header.tokens, expires_s)


def seal(
    io: DiskIO, fd: int, seed: int, end: int, rows: npt.NDArray[np.void], *, durable: bool
) -> None:
    """Append `rows` and the footer at `end` and cut the file there."""
    tail = rows.tobytes() + encode_footer(end, rows, seed)
    io.truncate(fd, io.write_all(fd, [tail], end))
    if durable:
        io.fsync(fd)


def read_footer(io: DiskIO, segment: Segment) -> SegmentFooter | None:
    """The footer of a sealed segment, if it speaks of this very file; `None` if it is open."""
    fd = segment.handle.fd
    size = io.fstat(fd).st_size
    if size < SEGMENT_HEADER_BYTES + FOOTER_BYTES:
        return None
    footer = parse_footer(io.pread(fd, FOOTER_BYTES, size - FOOTER_BYTES), segment.seed)
    if footer is None:
        return None
    toc_end = footer.toc_offset + footer.rows * TOC_DTYPE.itemsize
    return footer if toc_end + FOOTER_BYTES == size else None


def read_rows(io: DiskIO, segment: Segment) -> npt.NDArray[np.void] | None:
    """The table of contents of a sealed segment; `None` if it is not sealed or damaged."""
    footer = read_footer(io, segment)
    if footer is None:
        return None
    size = footer.rows * TOC_DTYPE.itemsize
    toc = io.read_exact(segment.handle.fd, size, footer.toc_offset)
    return np.frombuffer(toc, TOC_DTYPE) if toc_matches(footer, toc, segment.seed) else None


def scan(io: DiskIO, segment: Segment) -> Iterator[tuple[int, BlockHeader]]:
    """All records that parse, dead ones too, by their headers alone, in the order of the file.

    After a header that does not parse, looks for the next one at every record boundary: a torn
    or damaged record costs itself and not what follows. Payloads are not verified here. Reads
    windows of 4 MiB while records are small, and headers alone while they are large.
    """
    offset, want = SEGMENT_HEADER_BYTES, _SCAN_BYTES
    window, base = b"", 0
    fd = segment.handle.fd
    while True:
        at = offset - base
        if at + RECORD_HEADER_BYTES > len(window):
            window, base, at = io.read_exact(fd, want, offset), offset, 0
            if len(window) < RECORD_HEADER_BYTES:
                return
        found = parse_record_header(memoryview(window)[at:], segment.seed + offset)
        if found is not None:
            yield offset, found
            offset += found.record_bytes
            want = _SCAN_BYTES if found.record_bytes < _SMALL_RECORD_BYTES else RECORD_HEADER_BYTES
        elif want == RECORD_HEADER_BYTES:
            window, want = b"", _SCAN_BYTES
        else:
            offset = base + _next_magic(window, at + ALIGN_BYTES)


def _next_magic(window: bytes, start: int) -> int:
    """The next place in the window where a header may start, or its last boundary."""
    last = (len(window) - RECORD_HEADER_BYTES) // ALIGN_BYTES * ALIGN_BYTES + ALIGN_BYTES
    candidates = []
    for magic in (RECORD_MAGIC, DEAD_MAGIC):
        at = window.find(magic, start)
        while at >= 0 and at % ALIGN_BYTES:
            at = window.find(magic, at + 1)
        if at >= 0:
            candidates.append(at)
    return min([*candidates, max(start, last)])


def scanned_rows(io: DiskIO, segment: Segment) -> tuple[npt.NDArray[np.void], int]:
    """Rows of the live, undamaged records found by scanning, and where the last of them ends.

    For a segment without a table of contents: its writer died, so payloads are verified too.
    """
    rows, end = bytearray(), SEGMENT_HEADER_BYTES
    for offset, header in scan(io, segment):
        if not header.dead and header.stored_bytes <= RECORD_BYTES_MAX:
            start = offset + RECORD_HEADER_BYTES
            payload = io.read_exact(segment.handle.fd, header.stored_bytes, start)
            if payload_matches(header, payload):
                rows += toc_row(header, offset)
                end = offset + header.record_bytes
    return np.frombuffer(bytes(rows), TOC_DTYPE), end
