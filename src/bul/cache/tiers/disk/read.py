"""The read side: index entry -> one read -> header, key, identity, length and checksum -> a view.

Refuses to serve anything on the index's word. What does not agree is a miss and a counter; a
record that is really damaged is taken back in place and its segment noted as suspect.
"""

from __future__ import annotations

from hashlib import blake2b

from bul.blocks.chain import KEY_BYTES
from bul.blocks.format import (
    BlockHeader,
    parse_record_header,
    sound_payload,
)
from bul.blocks.prefix import Buffer
from bul.cache.tiers.disk.codec import decode
from bul.cache.tiers.disk.counters import Counters
from bul.cache.tiers.disk.folder import Folder
from bul.cache.tiers.disk.index import DiskIndex, Entry
from bul.cache.tiers.disk.io import DiskIO
from bul.cache.tiers.disk.segments import EXPIRES_S_MAX, SegmentFiles
from bul.clock import Clock

__all__ = ["Reader", "own_key"]


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
        except OSError:
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
