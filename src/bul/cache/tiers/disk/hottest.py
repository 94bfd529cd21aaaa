"""Which chains of a folder were used last: what a new process loads before anybody asks.

It refuses to read payloads, to take a lock, and to believe the index further than it must: keys
and parents come from the records' own headers, and a chain without its root is none. A wrong guess
costs a read; what is loaded is verified as ever.

The index knows the newest segment's number at each block's last use. The `blocks_max` blocks with
the highest (of these, those written last, so that tails come before their roots) are looked at one
after the other: a header each, and those of the ancestors that nobody has looked at yet.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from bul.blocks.format import RECORD_HEADER_BYTES, parse_record_header
from bul.cache.tiers.disk.index import SLOT_DTYPE, DiskIndex, Entry
from bul.cache.tiers.disk.io import DiskIO
from bul.cache.tiers.disk.segments import SegmentFiles

__all__ = ["hottest_chains"]

HOTTEST_MAX: Final = 65_536
CHAIN_BLOCKS_MAX: Final = 16_384
TRIM_SLOTS: Final = 262_144
_ORDER = ["last_use", "sequence", "offset"]


def hottest_chains(
    index: DiskIndex, files: SegmentFiles, live: Container[int], io: DiskIO, blocks_max: int
) -> Iterator[list[bytes]]:
    """Chains, root first, hottest first, of about `blocks_max` blocks together.

    The first takes a pass over the index (about 1 s for 10 M blocks), a block some 10 us.
    """
    parents: dict[bytes, bytes | None] = {}
    try:
        for slot in _hottest(index, min(blocks_max, HOTTEST_MAX)):
            if len(parents) >= blocks_max:
                return
            key = slot["key"].tobytes()
            if key not in parents:
                chain = _chain(key, parents, index, files, live, io)
                if chain:
                    yield chain
    except OSError:
        return


def _hottest(index: DiskIndex, count: int) -> npt.NDArray[np.void]:
    """The slots of the blocks used last, the last of all first."""
    kept = np.zeros(0, SLOT_DTYPE)
    for slots in index.chunks():
        blocks = slots[slots["tokens"] > 0]  # general values have none
        kept = np.concatenate([kept, blocks])
        if len(kept) > max(2 * count, TRIM_SLOTS):
            kept = kept[np.argpartition(kept["last_use"], len(kept) - count)[-count:]]
    return kept[np.argsort(kept, order=_ORDER)[::-1]][:count]


def _chain(
    key: bytes,
    parents: dict[bytes, bytes | None],
    index: DiskIndex,
    files: SegmentFiles,
    live: Container[int],
    io: DiskIO,
) -> list[bytes]:
    """From the root to `key`; empty if a block of it is not here. Fills `parents`."""
    chain: list[bytes] = []
    while len(chain) < CHAIN_BLOCKS_MAX:
        if key not in parents:
            parents[key] = _parent(key, index.lookup(key), files, live, io)
        parent = parents[key]
        if parent is None:
            return []
        chain.append(key)
        if not parent:
            return chain[::-1]
        key = parent
    return []


def _parent(
    key: bytes, entry: Entry | None, files: SegmentFiles, live: Container[int], io: DiskIO
) -> bytes | None:
    """The parent's key, b"" of a root; `None` if the block is not where the index says."""
    if entry is None or entry.sequence not in live:
        return None
    segment = files.open(entry.sequence)
    if segment is None:
        return None
    data = io.pread(segment.handle.fd, RECORD_HEADER_BYTES, entry.offset)
    header = parse_record_header(data, segment.seed + entry.offset)
    if header is None or header.dead or header.key != key:
        return None
    return header.parent
