"""RAM as a tier of its own: `Resident` behind one lock and the `Tier` contract.

It refuses a block whose parent is not here: the resident set is prefix-closed. The engine keeps its
own `Resident`, under its own lock; this one serves where a tier is asked for (a peer's memory, a
benchmark's yardstick, the tests' reference).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from bul.blocks.prefix import Buffer, RequestFacts
from bul.cache.contract import BlockRecord, CheckReport
from bul.cache.eviction.make import make_policy
from bul.cache.resident import Entry, Resident
from bul.clock import Clock, SystemClock

__all__ = ["RamTier"]


class RamTier:
    """At most `blocks_max` blocks and `bytes_max` bytes, under the policy called `eviction`."""

    name = "ram"

    def __init__(
        self,
        *,
        blocks_max: int,
        bytes_max: int,
        block_tokens: int = 64,
        eviction: str = "lru",
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._resident = Resident(
            make_policy(eviction, blocks_max, seed),
            blocks_max=blocks_max,
            bytes_max=bytes_max,
            block_tokens=block_tokens,
        )
        self._hits_total = 0
        self._misses_total = 0

    def match(self, keys: Sequence[bytes]) -> int:
        with self._lock:
            return len(self._resident.lookup(keys, 0, self._clock.wall_s()))

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        """The payloads themselves, no copies; a chain that is here from its root is touched."""
        now_s = self._clock.wall_s()
        with self._lock:
            found = [self._resident.lookup((key,), 0, now_s) for key in keys]
            hits = sum(map(len, found))
            self._hits_total += hits
            self._misses_total += len(keys) - hits
            here = [key for key, entry in zip(keys, found, strict=True) if entry]
            if here:
                self._resident.touch(self._path(here[-1]), RequestFacts(), self._clock.now_s())
            return [entry[0].payload if entry else None for entry in found]

    def set(self, records: Sequence[BlockRecord]) -> int:
        """Store; a record whose parent is not here is refused."""
        now_s = self._clock.now_s()
        with self._lock:
            for run in _runs(records):
                entries = [
                    Entry(record.payload, record.parent, expires_s=record.expires_wall_s)
                    for record in run
                ]
                before = self._path(run[0].parent)
                if run[0].parent and not before:
                    self._resident.refused_total += len(run)
                    continue
                path = before + [record.key for record in run]
                self._resident.admit(
                    path, entries, RequestFacts(), touched=len(before), now_s=now_s
                )
            return sum(record.key in self._resident.entries for record in records)

    def delete(self, keys: Sequence[bytes]) -> int:
        """Remove; descendants go too, since they could never match again."""
        with self._lock:
            present = sum(key in self._resident.entries for key in set(keys))
            for key in keys:
                self._resident.remove(key)
            return present

    def clear(self) -> None:
        with self._lock:
            self._resident.clear()

    def stats(self) -> Mapping[str, float]:
        with self._lock:
            return {
                "blocks": len(self._resident.entries),
                "bytes": self._resident.bytes,
                "hits_total": self._hits_total,
                "misses_total": self._misses_total,
                "evictions_total": self._resident.evictions_total,
                "refused_total": self._resident.refused_total,
            }

    def check(self, *, fix: bool = False) -> CheckReport:
        """Sums against entries, and every block's parent; `fix` takes orphans out."""
        with self._lock:
            entries = self._resident.entries
            orphans = [k for k, e in entries.items() if e.parent and e.parent not in entries]
            problems = [f"block {key.hex()[:12]} has no parent here" for key in orphans]
            total = sum(entry.payload_bytes for entry in entries.values())
            if total != self._resident.bytes:
                problems.append(f"{self._resident.bytes} bytes counted, {total} are here")
            if fix:
                for key in orphans:
                    self._resident.remove(key)
            return CheckReport(blocks=len(entries), bytes=total, problems=tuple(problems))

    def close(self) -> None:
        """Forget everything; RAM keeps nothing."""
        self.clear()

    def _path(self, key: bytes) -> list[bytes]:
        """The chain from the root to `key`, as far as it is here."""
        path = []
        while key:
            entry = self._resident.entries.get(key)
            if entry is None:
                break
            path.append(key)
            key = entry.parent
        path.reverse()
        return path


def _runs(records: Sequence[BlockRecord]) -> list[list[BlockRecord]]:
    """Consecutive records of which each is the parent of the next."""
    runs: list[list[BlockRecord]] = []
    for record in records:
        if runs and record.parent == runs[-1][-1].key:
            runs[-1].append(record)
        else:
            runs.append([record])
    return runs
