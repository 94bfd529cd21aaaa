"""`check`: every index entry against its record, every record against the index.

Refuses to touch foreign files, and records that a living writer may be about to publish.
An entry into a segment that is gone is no problem: eviction leaves such hints to be overwritten.
"""

from __future__ import annotations

import os

from bul.blocks.format import RECORD_HEADER_BYTES, parse_record_header, payload_matches
from bul.cache.contract import CheckReport
from bul.cache.tiers.disk.folder import Folder
from bul.cache.tiers.disk.index import DiskIndex, Entry
from bul.cache.tiers.disk.io import DiskIO
from bul.cache.tiers.disk.segments import EXPIRES_S_MAX, Segment, SegmentFiles, scan

__all__ = ["check_folder"]

PROBLEMS_MAX = 1000


class _Findings:
    """What was found, bounded."""

    def __init__(self) -> None:
        self.blocks = 0
        self.bytes = 0
        self.problems: list[str] = []

    def add(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def check_folder(
    folder: Folder, files: SegmentFiles, index: DiskIndex, io: DiskIO, *, fix: bool
) -> CheckReport:
    """Reads all payloads. With `fix`, the problems listed are those that were mended (foreign
    files stay). Raises OSError if the folder itself cannot be read.
    """
    found = _Findings()
    for name in folder.foreign_names():
        found.add(f"{name}: not one of our files; remove it by hand")
    for sequence in sorted(folder.live):
        segment = files.open(sequence)
        if segment is None:
            found.add(f"segment {sequence}: another version, identity or number; refused")
            if fix:
                with folder.locked():
                    folder.drop(sequence)
                    folder.changed()
        else:
            _check_records(segment, folder.live, files, index, io, found, fix=fix)
    _check_entries(folder, files, index, io, found, fix=fix)
    return CheckReport(blocks=found.blocks, bytes=found.bytes, problems=tuple(found.problems))


def _check_records(
    segment: Segment,
    live: set[int],
    files: SegmentFiles,
    index: DiskIndex,
    io: DiskIO,
    found: _Findings,
    *,
    fix: bool,
) -> None:
    """Records that nobody would find."""
    sequence = segment.sequence
    handle = io.open(files.path(sequence), os.O_RDONLY)
    idle = io.try_lock(handle.fd, shared=True)
    handle.close()
    for offset, header in scan(io, segment):
        if header.dead or not idle or index.lookup(header.key) is not None:
            continue
        payload = io.read_exact(
            segment.handle.fd, header.stored_bytes, offset + RECORD_HEADER_BYTES
        )
        if not payload_matches(header, payload):
            continue
        found.add(f"segment {sequence} offset {offset}: a sound block is not in the index")
        if fix:
            expires_s = min(-(-header.expires_wall_ms // 1000), EXPIRES_S_MAX)
            entry = Entry(
                0, sequence, offset, header.record_bytes, header.tokens, sequence, expires_s
            )
            with index.locked():
                index.insert(header.key, entry, live, lambda _: True)


def _check_entries(
    folder: Folder,
    files: SegmentFiles,
    index: DiskIndex,
    io: DiskIO,
    found: _Findings,
    *,
    fix: bool,
) -> None:
    """Entries that do not lead to a sound record."""
    for slots in index.chunks():
        for slot in slots:
            sequence, offset = int(slot["sequence"]), int(slot["offset"])
            key = slot["key"].tobytes()
            if sequence not in folder.live:
                continue
            fault = _fault(files.open(sequence), io, key, offset, int(slot["record_bytes"]))
            if fault is None:
                found.blocks += 1
                found.bytes += int(slot["record_bytes"])
                continue
            found.add(f"{key.hex()}: {fault} (segment {sequence} offset {offset})")
            if fix:
                files.mark_dead(sequence, offset, key)
                with index.locked():
                    index.remove(key, sequence, offset)


def _fault(
    segment: Segment | None, io: DiskIO, key: bytes, offset: int, record_bytes: int
) -> str | None:
    if segment is None:
        return "its segment is refused"
    data = io.read_exact(segment.handle.fd, record_bytes, offset)
    header = parse_record_header(data, segment.seed + offset)
    if header is None:
        return "no record is there"
    if header.key != key:
        return "another block is there"
    if header.dead:
        return "the record was taken back"
    payload = memoryview(data)[RECORD_HEADER_BYTES:][: header.stored_bytes]
    return None if payload_matches(header, payload) else "the payload is damaged"
