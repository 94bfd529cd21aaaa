"""What waits to be written to one tier: bounded in bytes, first in first out, taken in batches.

It refuses what does not fit instead of waiting, and to lock: its lane holds the lock. Bytes count
until they are written, not until they are taken, so that the bound is one of memory.

Blocks are immutable, so a tier may ignore a block that it has; general values are not: theirs are
records of no tokens, for which the old one is deleted first, and the last of a batch wins. A tier
for several hosts (`delete_values`) keeps the newest version by itself.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses

from bul.cache.contract import BlockRecord, Tier

__all__ = ["Batch", "Removal", "WriteQueue", "record_bytes"]

BATCH_BYTES = 8 << 20
"""A call writes about this much: short enough for a slow disk to stay within its deadline."""

BATCH_BLOCKS = 1024
REMOVALS_MAX = 65_536


def record_bytes(record: BlockRecord) -> int:
    """Bytes of the payload."""
    payload = record.payload
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


@dataclasses.dataclass(frozen=True, slots=True)
class Removal:
    """Delete `keys`, or everything if `None`. `done` gets how many were there, 0 if unknown.

    version: of general values; a tier for several hosts then remembers the deletion.
    """

    keys: tuple[bytes, ...] | None
    done: concurrent.futures.Future[int]
    version: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Taken together: either records, or one removal."""

    records: tuple[BlockRecord, ...]
    removal: Removal | None
    size_bytes: int

    def write(self, tier: Tier) -> int:
        """Do it; how many records are there now. Raises what the tier raises."""
        if self.removal is not None:
            self._remove(self.removal, tier)
            return 0
        values = {record.key: record for record in self.records if not record.tokens}
        if values and not hasattr(tier, "delete_values"):
            tier.delete(list(values))
        last = [r for r in self.records if r.tokens or values[r.key] is r]
        written = tier.set(last)
        if not 0 <= written <= len(last):
            raise ValueError(f"{written!r} of {len(last)} blocks written")
        return written + len(self.records) - len(last)

    @staticmethod
    def _remove(removal: Removal, tier: Tier) -> None:
        removed = 0
        if removal.keys is None:
            tier.clear()
        elif removal.version and hasattr(tier, "delete_values"):
            removed = int(tier.delete_values(removal.keys, removal.version))
        else:
            removed = int(tier.delete(removal.keys))
        if not removal.done.done():
            removal.done.set_result(removed)


class WriteQueue:
    """`bytes_max` of payloads, and REMOVALS_MAX removals."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._items: collections.deque[BlockRecord | Removal] = collections.deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, record: BlockRecord) -> bool:
        """Queue it; False if there is no room."""
        size = record_bytes(record)
        if self.bytes + size > self._bytes_max:
            return False
        self._items.append(record)
        self.bytes += size
        return True

    def remove(self, removal: Removal) -> bool:
        """Queue a removal behind all that was queued before it."""
        if len(self._items) >= REMOVALS_MAX:
            return False
        self._items.append(removal)
        return True

    def take(self) -> Batch:
        """The next batch; its bytes stay counted until `written`. Needs an item."""
        first = self._items.popleft()
        if isinstance(first, Removal):
            return Batch((), first, 0)
        records, size = [first], record_bytes(first)
        while self._items and len(records) < BATCH_BLOCKS:
            item = self._items[0]
            if isinstance(item, Removal) or size + record_bytes(item) > BATCH_BYTES:
                break
            records.append(item)
            size += record_bytes(item)
            self._items.popleft()
        return Batch(tuple(records), None, size)

    def written(self, batch: Batch) -> None:
        """The batch is done with, well or not."""
        self.bytes -= batch.size_bytes
        if batch.removal is not None and not batch.removal.done.done():
            batch.removal.done.set_result(0)

    def drop_all(self) -> int:
        """Forget everything that waits; how many records that was."""
        dropped = 0
        while self._items:
            batch = self.take()
            dropped += len(batch.records)
            self.written(batch)
        return dropped
