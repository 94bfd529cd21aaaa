"""The read side: index entry -> one read -> header, key, identity, length and checksum -> a view.

Refuses to serve anything on the index's word. What does not agree is a miss and a counter; a
record that is really damaged is taken back in place and its segment noted as suspect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final

from bul.blocks.chain import KEY_BYTES
from bul.blocks.format import (
    BlockHeader,
    parse_record_header,
    sound_payload,
)
from bul.blocks.prefix import Buffer
from bul.cache.tiers.disk.buffers import BufferPool
from bul.cache.tiers.disk.codec import decode
from bul.cache.tiers.disk.counters import Counters
from bul.cache.tiers.disk.folder import Folder
from bul.cache.tiers.disk.index import DiskIndex, Entry
from bul.cache.tiers.disk.io import IOV_MAX, DiskIO
from bul.cache.tiers.disk.segments import EXPIRES_S_MAX, SegmentFiles
from bul.clock import Clock

__all__ = ["Reader", "own_key"]

RUN_BYTES_MAX: Final = 64 << 20


class Reader:
    """Reads single records. Thread-safe, and holds no lock while it reads."""

    def __init__(
        self,
        folder: Folder,
        files: SegmentFiles,
        index: DiskIndex,
        io: DiskIO,
        *,
        identity: bytes,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._folder = folder
        self._files = files
        self._index = index
        self._io = io
        self._identity = identity
        self._clock = clock
        self._counters = counters
        self._buffers = BufferPool()
        self.suspect: set[int] = set()

    def follow(self) -> None:
        """Notice what other processes did to segments and index. Raises OSError."""
        if self._folder.refresh():
            self._files.forget(self._folder.live)
        self._index.reopen_if_replaced()

    def is_live(self, entry: Entry) -> bool:
        """Whether the entry's segment exists and its time is not over."""
        expired = 0 < entry.expires_s < EXPIRES_S_MAX and entry.expires_s <= self._clock.wall_s()
        return entry.sequence in self._folder.live and not expired

    def get_many(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        """`get` for each key; records that lie side by side, as those of a prefix do, in one read.

        Each block has a buffer of its own all the same, so that one that is kept does not keep
        its neighbours' memory. Whatever does not fit falls back to `get`.
        """
        found: list[Buffer | None] = []
        for run in self._runs(keys):
            payloads = self._read_run(run) if len(run) > 1 else [None]
            found += [
                self.get(key) if payload is None else payload
                for (key, _), payload in zip(run, payloads, strict=True)
            ]
        return found

    def _runs(self, keys: Sequence[bytes]) -> Iterator[list[tuple[bytes, Entry | None]]]:
        """The keys in order, those whose records lie side by side together."""
        run: list[tuple[bytes, Entry | None]] = []
        end, size = (0, 0), 0
        for key in keys:
            try:
                entry = self._index.lookup(key)
            except OSError:
                entry = None
            place = (entry.sequence, entry.offset) if entry else None
            full = len(run) >= IOV_MAX or size >= RUN_BYTES_MAX
            if run and (place != end or full):
                yield run
                run, size = [], 0
            run.append((key, entry))
            if entry is not None:
                end = (entry.sequence, entry.offset + entry.record_bytes)
                size += entry.record_bytes
            else:
                end = (0, 0)
        if run:
            yield run

    def _read_run(self, run: Sequence[tuple[bytes, Entry | None]]) -> list[Buffer | None]:
        """Payloads that are all they should be; `None` for those that `get` must look at."""
        entries = [entry for _, entry in run if entry is not None]
        first = entries[0]
        try:
            segment = self._files.open(first.sequence)
            if segment is None or first.sequence not in self._folder.live:
                return [None] * len(run)
            buffers = [self._buffers.take(entry.record_bytes) for entry in entries]
            self._io.preadv(segment.handle.fd, buffers, first.offset)
            return [
                self._judge(key, entry, data, segment.seed)
                for (key, _), entry, data in zip(run, entries, buffers, strict=True)
            ]
        except (OSError, MemoryError):
            return [None] * len(run)

    def _judge(self, key: bytes, entry: Entry, data: memoryview, seed: int) -> Buffer | None:
        found = sound_payload(data, seed + entry.offset, key, self._identity)
        if found is None:
            return None
        payload, encoding, raw_bytes, expires_wall_ms = found
        if expires_wall_ms and expires_wall_ms <= self._clock.wall_s() * 1000:
            return None
        self._index.touch(entry, self._folder.newest)
        return decode(encoding, payload, raw_bytes) if encoding else payload

    def get(self, key: bytes, *, again: bool = True) -> Buffer | None:
        """One verified payload, or `None`. `again`: it may have moved on while we looked.

        What others did is only looked at when something does not fit: a dropped segment is cut
        to nothing, so that a read from it cannot succeed.
        """
        try:
            entry = self._index.lookup(key)
            if entry is None or entry.sequence not in self._folder.live:
                self.follow()
                entry = self._index.lookup(key)
                if entry is None or entry.sequence not in self._folder.live:
                    return None
            segment = self._files.open(entry.sequence)
            if segment is None:
                self._counters.add("stale_total")
                self._forget(key, entry)
                return None
            place = segment.seed + entry.offset
            data = self._io.read_exact(segment.handle.fd, entry.record_bytes, entry.offset)
            found = sound_payload(data, place, key, self._identity)
            if found is None:
                return self._missed(key, entry, parse_record_header(data, place), again=again)
            payload, encoding, raw_bytes, expires_wall_ms = found
            if expires_wall_ms and expires_wall_ms <= self._clock.wall_s() * 1000:
                self._counters.add("expired_total")
                self._forget(key, entry)
                return None
            self._index.touch(entry, self._folder.newest)
        except (OSError, MemoryError):
            # MemoryError: a damaged index may speak of gigabytes.
            self._counters.add("io_errors_total")
            return None
        return decode(encoding, payload, raw_bytes) if encoding else payload

    def _missed(
        self, key: bytes, entry: Entry, header: BlockHeader | None, *, again: bool
    ) -> Buffer | None:
        """A record that is not what the index says: moved, taken back, dropped, or damaged."""
        self.follow()
        current = self._index.lookup(key)
        if current is None or entry.sequence not in self._folder.live:
            self._counters.add("stale_total")
            return None
        if again and current[1:4] != entry[1:4]:
            return self.get(key, again=False)
        if header is not None and header.dead and header.key == key:
            self._counters.add("stale_total")
        else:
            self._counters.add("corrupted_total")
            self.suspect.add(entry.sequence)
            self._files.mark_dead(entry.sequence, entry.offset, key)
        self._forget(key, entry)
        return None

    def _forget(self, key: bytes, entry: Entry) -> None:
        with self._index.locked():
            self._index.remove(key, entry.sequence, entry.offset)


def own_key(key: bytes) -> bytes:
    """Keys are 32 bytes; any other length (general values) is hashed to that."""
    if len(key) == KEY_BYTES:
        return bytes(key)
    return blake2b(key, digest_size=KEY_BYTES, person=b"bul-other-key").digest()
