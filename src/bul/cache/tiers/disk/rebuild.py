"""Builds the index again from the segments, after everybody who had the folder open was killed.

Refuses to take anything from the old index but hints about recency. Sealed segments are read by
their table of contents, a few MiB for a million blocks; the others, one for each process that
died, are scanned and verified. A power cut may have torn the old file: it is read as numbers, so
the worst that it can do is to make a block look more recently used than it was.
"""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt

from bul.blocks.format import TOC_DTYPE
from bul.cache.tiers.disk.folder import Folder
from bul.cache.tiers.disk.index import DiskIndex
from bul.cache.tiers.disk.io import DiskIO
from bul.cache.tiers.disk.segments import SegmentFiles, read_rows, scanned_rows
from bul.cache.tiers.disk.slots import SLOT_DTYPE, key_head, newest_only

__all__ = ["rebuild_index"]


def rebuild_index(folder: Folder, files: SegmentFiles, index: DiskIndex, io: DiskIO) -> int:
    """Replace the index by what the segments hold; returns the blocks. Under the folder's lock."""
    uses = _old_uses(index)
    parts = []
    for sequence in sorted(folder.live):
        # A segment that cannot be read is so many misses; the others are worth starting for.
        with contextlib.suppress(OSError):
            parts.append(_slots(_rows(files, io, sequence), sequence))
    slots = np.zeros(sum(map(len, parts)), SLOT_DTYPE)
    end = len(slots)
    while parts:  # from the back, so that each part is freed as soon as it is copied
        part = parts.pop()
        slots[end - len(part) : end] = part
        end -= len(part)
    slots = newest_only(slots)
    _restore_uses(slots, uses, folder.newest)
    del uses
    with index.locked():
        index.replace(slots)
    return len(slots)


def _rows(files: SegmentFiles, io: DiskIO, sequence: int) -> npt.NDArray[np.void]:
    segment = files.open(sequence)
    if segment is None:
        return np.zeros(0, TOC_DTYPE)
    rows = read_rows(io, segment)
    return scanned_rows(io, segment)[0] if rows is None else rows


def _slots(rows: npt.NDArray[np.void], sequence: int) -> npt.NDArray[np.void]:
    slots = np.zeros(len(rows), SLOT_DTYPE)
    for name in ("key", "offset", "record_bytes", "tokens", "expires_s"):
        slots[name] = rows[name]
    slots["sequence"] = slots["last_use"] = sequence
    return slots


def _old_uses(index: DiskIndex) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """(first 8 bytes of the key, last use) of the old slots, sorted by the former."""
    heads, uses = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
    if index.open():
        for chunk in index.chunks():
            heads.append(key_head(chunk, 0).copy())
            uses.append(chunk["last_use"].copy())
    head, use = np.concatenate(heads), np.concatenate(uses)
    order = np.argsort(head)
    return head[order], use[order]


def _restore_uses(
    slots: npt.NDArray[np.void],
    uses: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]],
    newest: int,
) -> None:
    head, use = uses
    if not len(head) or not len(slots):
        return
    mine = key_head(slots, 0)
    at = np.minimum(np.searchsorted(head, mine), len(head) - 1)
    known = (head[at] == mine) & (use[at] <= newest)
    slots["last_use"][known] = np.maximum(slots["last_use"][known], use[at][known])
