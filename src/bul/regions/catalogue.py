"""What a region has, by key: version, tenant, model, size; and digests of it by bucket.

Refuses to grow beyond its bound: the oldest leave, the floor rises to the newest of them, and who
keeps their bytes is told to drop them, so that a purge never misses what the catalogue forgot.

Anti-entropy compares 1,024 bucket digests of eight bytes (a Merkle tree of two levels: a root over
buckets, a bucket over its records), then, of the buckets that differ, one eight-byte hash a
record; only what is really missing is then named in full. 100,000 records of which 1,000 are
missing, all in different buckets: 8 kB + 800 kB, where the blocks themselves are 64 MB.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Final

from bul.regions.versions import Grave

__all__ = ["BUCKETS", "Catalogue", "Entry", "bucket_of", "grave_hash", "record_hash"]

BUCKETS: Final = 1024
GRAVE_KINDS: Final = {"key": b"k", "tenant": b"t", "model": b"m"}


@dataclasses.dataclass(slots=True)
class Entry:
    """One block or general value. tokens: 0 for a value. model, parent: 32 bytes, or b"".

    tenant: its tag, 8 bytes, or b"". name: a value's text key where that is known, else "".
    size: payload bytes. checksum: of a value's payload, 0 for a block's, which never changes.
    expires_wall_ms: 0 for never. present: the bytes are (probably) here.
    hits: how often it was wanted, as far as was heard.
    """

    key: bytes
    version: int
    model: bytes = b""
    tenant: bytes = b""
    parent: bytes = b""
    tokens: int = 0
    size: int = 0
    checksum: int = 0
    name: str = ""
    expires_wall_ms: int = 0
    present: bool = True
    hits: int = 0


def bucket_of(target: bytes) -> int:
    """Keys are hashes, so their first bits spread well."""
    return int.from_bytes(target[:2].ljust(2, b"\0"), "big") >> 6


def record_hash(key: bytes, version: int) -> int:
    """64 bits of (key, version)."""
    packed = key + version.to_bytes(8, "big")
    return int.from_bytes(blake2b(packed, digest_size=8, person=b"bul-item").digest(), "big")


def grave_hash(grave: Grave) -> int:
    """64 bits of it; never those of an entry."""
    packed = GRAVE_KINDS[grave.kind] + grave.target + grave.version.to_bytes(8, "big")
    return int.from_bytes(blake2b(packed, digest_size=8, person=b"bul-grave").digest(), "big")


class Catalogue:
    """At most `entries_max` entries. Digests of the live entries are kept up as they change."""

    def __init__(self, entries_max: int = 262_144) -> None:
        self._entries_max = entries_max
        self._entries: dict[bytes, Entry] = {}
        self._digests = [0] * BUCKETS
        self._members: dict[int, set[bytes]] = {}
        self.forgotten_total = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, key: bytes) -> Entry | None:
        return self._entries.get(key)

    def set(self, entry: Entry) -> None:
        """Add or replace."""
        self.remove(entry.key)
        self._entries[entry.key] = entry
        bucket = bucket_of(entry.key)
        self._members.setdefault(bucket, set()).add(entry.key)
        self._digests[bucket] ^= record_hash(entry.key, entry.version)

    def remove(self, key: bytes) -> Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            bucket = bucket_of(key)
            self._members[bucket].discard(key)
            self._digests[bucket] ^= record_hash(key, entry.version)
        return entry

    def remove_where(self, dead: Callable[[Entry], bool]) -> list[Entry]:
        """Remove all for which `dead` is true; which they were. Looks at every entry."""
        gone = [entry for entry in self._entries.values() if dead(entry)]
        for entry in gone:
            self.remove(entry.key)
        return gone

    def digests(self, floor: int) -> list[int]:
        """One number a bucket, over entries newer than `floor`."""
        if not floor:
            return list(self._digests)
        found = [0] * BUCKETS
        for entry in self._entries.values():
            if entry.version > floor:
                found[bucket_of(entry.key)] ^= record_hash(entry.key, entry.version)
        return found

    def in_buckets(self, buckets: Iterable[int], floor: int) -> list[Entry]:
        """Entries newer than `floor` in these buckets."""
        return [
            entry
            for bucket in buckets
            for key in self._members.get(bucket, ())
            if (entry := self._entries[key]).version > floor
        ]

    def forget(self) -> list[Entry]:
        """Remove the oldest if there are too many, a sixteenth at a time; which they were."""
        if len(self._entries) <= self._entries_max:
            return []
        surplus = len(self._entries) - self._entries_max + self._entries_max // 16
        gone = heapq.nsmallest(surplus, self._entries.values(), key=lambda entry: entry.version)
        for entry in gone:
            self.remove(entry.key)
        self.forgotten_total += len(gone)
        return gone

    def hottest(self, count: int) -> list[Entry]:
        """Those that were wanted most often, the newest first among equals."""
        here = (entry for entry in self._entries.values() if entry.present)
        return heapq.nlargest(count, here, key=lambda entry: (entry.hits, entry.version))
