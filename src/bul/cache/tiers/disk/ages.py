"""How old what lies on disk is, by the segments' own headers.

Refuses to know single blocks' ages: a block is as old as its segment, or younger.
"""

from __future__ import annotations

from bul.blocks.format import SEGMENT_HEADER_BYTES, parse_segment_header
from bul.cache.tiers.disk.io import DiskIO
from bul.cache.tiers.disk.segments import SegmentFiles

__all__ = ["segment_ages"]


def segment_ages(
    files: SegmentFiles, live: set[int], io: DiskIO, wall_s: float
) -> dict[str, float]:
    """Seconds since the oldest and the newest of the live segments were begun; nothing for none.

    Numbers only grow, so two headers are enough. Raises OSError.
    """
    ages: dict[str, float] = {}
    for name, sequence in (("oldest", min(live, default=0)), ("newest", max(live, default=0))):
        segment = files.open(sequence) if sequence else None
        if segment is None:
            continue
        header = parse_segment_header(io.pread(segment.handle.fd, SEGMENT_HEADER_BYTES, 0))
        if header is not None:
            ages[f"{name}_segment_age_s"] = max(0.0, wall_s - header.created_wall_ms / 1000)
    return ages
