"""What a `set` does: leave out what is here, append the rest in one batch, publish it in the index.

Refuses to acknowledge what it could not publish, and takes back what it wrote of that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from bul.blocks.format import BlockHeader
from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord
from bul.cache.tiers.disk.append import Appender
from bul.cache.tiers.disk.codec import encode
from bul.cache.tiers.disk.counters import Counters
from bul.cache.tiers.disk.folder import Folder
from bul.cache.tiers.disk.index import DiskIndex, Entry
from bul.cache.tiers.disk.read import Reader, own_key
from bul.cache.tiers.disk.room import RoomMaker
from bul.cache.tiers.disk.segments import EXPIRES_S_MAX, RECORD_BYTES_MAX, SegmentFiles
from bul.clock import Clock

__all__ = ["Publisher"]

INDEX_SHARE_MAX: Final = 0.25


class Publisher:
    """The write side of the tier. Thread-safe."""

    def __init__(
        self,
        folder: Folder,
        files: SegmentFiles,
        index: DiskIndex,
        reader: Reader,
        appender: Appender,
        room: RoomMaker,
        *,
        identity: bytes,
        compression: str,
        bytes_max: int,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._folder = folder
        self._files = files
        self._index = index
        self._reader = reader
        self._appender = appender
        self._room = room
        self._identity = identity
        self._compression = compression
        self._bytes_max = bytes_max
        self._clock = clock
        self._counters = counters

    def set(self, records: Sequence[BlockRecord]) -> int:
        """Append what is not here yet, in one batch; returns how many are here now."""
        repeated = published = 0
        try:
            self._reader.follow()
            fresh = [made for record in records if (made := self._unless_here(record)) is not None]
            repeated = len(records) - len(fresh)
            fresh = [made for made in fresh if made[0].stored_bytes <= RECORD_BYTES_MAX]
            if fresh:
                places = self._appender.append(fresh)
                self._publish(fresh[: len(places)], places)
                published = len(places)
        except OSError:
            self._counters.add("io_errors_total")
        self._counters.add("repeated_blocks_total", repeated)
        self._counters.add("dropped_blocks_total", len(records) - repeated - published)
        return repeated + published

    def _unless_here(self, record: BlockRecord) -> tuple[BlockHeader, Buffer] | None:
        """The record to append, or `None` if it is here already (then it was touched)."""
        key = own_key(record.key)
        entry = self._index.lookup(key)
        kept = entry is not None and record.tokens and self._reader.is_live(entry)
        if entry is not None and kept and self._lives_long_enough(entry, record.expires_wall_s):
            self._index.touch(entry, self._folder.newest)
            return None
        payload = record.payload
        if isinstance(payload, memoryview):
            payload = payload.cast("B")
        encoding, stored = encode(payload, self._compression)
        header = BlockHeader(
            key=key,
            parent=own_key(record.parent) if record.parent else b"",
            identity=self._identity,
            tokens=record.tokens,
            stored_bytes=len(stored),
            raw_bytes=len(payload),
            checksum=b"",  # summed when it is written
            encoding=encoding,
            expires_wall_ms=int(record.expires_wall_s * 1000),
        )
        return header, stored

    def _lives_long_enough(self, entry: Entry, expires_wall_s: float) -> bool:
        """A repeat extends a life only when less than half of the new one is left."""
        if not 0 < entry.expires_s < EXPIRES_S_MAX:
            return True
        now_s = self._clock.wall_s()
        wanted_s = expires_wall_s - now_s if expires_wall_s else float("inf")
        return entry.expires_s - now_s >= wanted_s / 2

    def _publish(
        self, fresh: Sequence[tuple[BlockHeader, Buffer]], places: Sequence[tuple[int, int]]
    ) -> None:
        replaced: list[tuple[Entry, bytes]] = []
        try:
            with self._index.locked():
                live = self._folder.live
                for (header, _), (sequence, offset) in zip(fresh, places, strict=True):
                    expires_s = min(-(-header.expires_wall_ms // 1000), EXPIRES_S_MAX)
                    entry = Entry(
                        0, sequence, offset, header.record_bytes, header.tokens, sequence, expires_s
                    )
                    old = self._index.insert(header.key, entry, live, self._may_grow)
                    if old is not None and old.sequence in live:
                        replaced.append((old, header.key))
        except OSError:
            # Unpublished and unacknowledged: must not come up in a rebuild after a later delete.
            with contextlib.suppress(OSError):
                for (header, _), (sequence, offset) in zip(fresh, places, strict=True):
                    self._files.mark_dead(sequence, offset, header.key)
            raise
        for old, key in replaced:
            self._files.mark_dead(old.sequence, old.offset, key)
        self._counters.add("set_blocks_total", len(fresh))
        self._counters.add("written_bytes_total", sum(h.stored_bytes for h, _ in fresh))

    def _may_grow(self, index_bytes: int) -> bool:
        return index_bytes <= self._bytes_max * INDEX_SHARE_MAX and self._room.fits(index_bytes)
