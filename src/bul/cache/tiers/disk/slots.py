"""The slots of the index as arrays: where all of them go when a whole table is built at once.

Refuses to read or write: tables of many millions are made here, and `index.py` puts them on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "BUCKET_SLOTS",
    "SLOT_BYTES",
    "SLOT_DTYPE",
    "key_head",
    "newest_only",
    "pieces",
    "positions_of",
]

SLOT_BYTES: Final = 64
BUCKET_SLOTS: Final = 16
_PIECE_BUCKETS: Final = 8192

SLOT_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("key", "V32"),
        ("sequence", "<u4"),
        ("offset", "<u8"),
        ("record_bytes", "<u4"),
        ("tokens", "<u4"),
        ("last_use", "<u4"),
        ("expires_s", "<u4"),
        ("pad", "V4"),
    ]
)


def key_head(slots: npt.NDArray[np.void], half: int) -> npt.NDArray[np.uint64]:
    """The first or second 8 bytes of the keys, as numbers; a view, no copy."""
    words: npt.NDArray[np.uint64] = slots.view("<u8").reshape(-1, SLOT_BYTES // 8)[:, half]
    return words


def pieces(
    slots: npt.NDArray[np.void], positions: npt.NDArray[np.int64], buckets: int
) -> Iterator[npt.NDArray[np.void]]:
    """The table with each slot at its position, piece after piece."""
    order = np.argsort(positions, kind="stable")
    positions = positions[order]
    for first in range(0, buckets, _PIECE_BUCKETS):
        last = min(first + _PIECE_BUCKETS, buckets)
        low, high = first * BUCKET_SLOTS, last * BUCKET_SLOTS
        begin, end = np.searchsorted(positions, (low, high))
        piece = np.zeros(high - low, SLOT_DTYPE)
        piece[positions[begin:end] - low] = slots[order[begin:end]]
        yield piece


def positions_of(slots: npt.NDArray[np.void], buckets: int) -> npt.NDArray[np.int64]:
    """A slot of the table for each entry, -1 for those left out.

    First everyone goes to the first bucket; whoever finds it full goes to the second. At the
    load used here a few in a million find both full, and have somebody moved for them.
    """
    positions = np.full(len(slots), -1, np.int64)
    used = np.zeros(buckets, np.int64)
    rest = np.arange(len(slots))
    for half in (0, 1):
        bucket = (key_head(slots, half)[rest] % np.uint64(buckets)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        rest, bucket = rest[order], bucket[order]
        counts = np.bincount(bucket, minlength=buckets)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        rank = np.arange(len(bucket)) - starts + used[bucket]
        fits = rank < BUCKET_SLOTS
        positions[rest[fits]] = bucket[fits] * BUCKET_SLOTS + rank[fits]
        used = np.minimum(used + counts, BUCKET_SLOTS)
        rest = rest[~fits]
    return positions


def newest_only(slots: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """One slot a key; of several, the last in the order given.

    Compares 8 of a key's 32 bytes: that two of 10 M keys share them has odds of one in 400,000, and
    costs one hint.
    """
    heads = key_head(slots, 0)
    order = np.argsort(heads, kind="stable")
    superseded = order[:-1][heads[order[1:]] == heads[order[:-1]]]
    if not len(superseded):
        return slots
    keep = np.ones(len(slots), bool)
    keep[superseded] = False
    return slots[keep]
