"""One region's judgement: what is alive, what is news, what it wants. No I/O, no clock of its own.

Refuses to decide by the order in which news arrive: every rule is a maximum over versions, so the
same news in any order, any number of times, end in the same state.

    alive      its version is newer than every grave over its key, its tenant and its model
    the newest wins: of two versions of one key; a block's bytes are the same in all versions
    unknown    and not newer than a floor: refused (`versions.py` says why)

Every change is also told as a `Change`, which the journal keeps before anybody is answered.
"""

from __future__ import annotations

import array
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from bul.regions.catalogue import BUCKETS, Catalogue, Entry, bucket_of, grave_hash, record_hash
from bul.regions.versions import TIME_SHIFT, Grave, GraveKind, Graves, HybridClock

__all__ = ["Change", "Floors", "RegionState"]

CEILING_MS: Final = 10_000
"""Versions are reserved so far ahead: after a power cut none is made twice."""

Verdict = Literal["dead", "known", "wanted"]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """For the journal. drop: an entry is gone; the floors and the ceiling go by `name`."""

    kind: Literal["set", "drop", "dig", "forget", "number"]
    entry: Entry | None = None
    key: bytes = b""
    grave: Grave | None = None
    name: str = ""
    number: int = 0

    @property
    def durable(self) -> bool:
        """Must survive a power cut: what is deleted, and versions that were reserved."""
        return self.kind in ("dig", "number")


@dataclasses.dataclass(frozen=True, slots=True)
class Floors:
    """graves: below it some were forgotten. catalogue: below it some entries were."""

    graves: int = 0
    catalogue: int = 0

    def above(self, other: Floors) -> Floors:
        return Floors(max(self.graves, other.graves), max(self.catalogue, other.catalogue))


class RegionState:
    """Not thread-safe. `changes` and `unwanted` are emptied by who does the I/O.

    unwanted: keys whose bytes must leave the store.
    """

    def __init__(
        self, region: str, *, entries_max: int = 262_144, graves: Graves | None = None
    ) -> None:
        self.region = region
        self.catalogue = Catalogue(entries_max)
        self.graves = Graves() if graves is None else graves
        self.clock = HybridClock(region)
        self.catalogue_floor = 0
        self.changes: list[Change] = []
        self.unwanted: list[Entry] = []
        self._ceiling = 0
        self.refused_future_total = 0

    # what happens here

    def write(self, entry: Entry, wall_ms: int) -> Entry:
        """Something was computed or set in this region: it gets a version."""
        stamped = dataclasses.replace(entry, version=self._tick(wall_ms))
        self._keep(stamped)
        return stamped

    def delete(self, kind: GraveKind, target: bytes, wall_ms: int) -> Grave:
        """Delete a key, purge a tenant or retire a model, here and everywhere."""
        grave = Grave(kind, target, self._tick(wall_ms))
        self.bury(grave, wall_ms)
        return grave

    def lost(self, key: bytes) -> None:
        """Its bytes are not here (any more)."""
        entry = self.catalogue.get(key)
        if entry is not None and entry.present:
            entry.present = False
            self.changes.append(Change("set", entry))

    # what others say

    def judge(self, entry: Entry, wall_ms: int) -> Verdict:
        """What to do about `entry`, which another region has. Changes nothing but versions."""
        if not self.clock.believes(entry.version, wall_ms):
            self.refused_future_total += 1
            return "dead"
        self.clock.see(entry.version)
        if entry.version <= self.graves.covering(entry.key, entry.tenant, entry.model):
            return "dead"
        known = self.catalogue.get(entry.key)
        if known is None:
            floor = max(self.graves.floor, self.catalogue_floor)
            return "wanted" if entry.version > floor else "dead"
        if known.version >= entry.version:
            return "known"
        if entry.tokens and known.present:
            self._keep(dataclasses.replace(known, version=entry.version))
            return "known"
        return "wanted"

    def arrived(self, entry: Entry, wall_ms: int) -> bool:
        """Its bytes came with it; whether to store them."""
        if self.judge(entry, wall_ms) != "wanted":
            return False
        self._keep(entry)
        return True

    def bury(self, grave: Grave, wall_ms: int) -> bool:
        """Take a grave in, from here or elsewhere; whether it says anything new."""
        if not self.clock.believes(grave.version, wall_ms):
            self.refused_future_total += 1
            return False
        self.clock.see(grave.version)
        new = self.graves.dig(grave)
        if new:
            self.changes.append(Change("dig", grave=grave))
        if new or grave.version <= self.graves.floor:
            self._remove_covered(grave)
            self._forget_graves()
        return new

    def meet(self, floors: Floors) -> None:
        """Another region knows nothing any more at or below both of its floors: nor shall we.

        What is that old may have been deleted there, and the grave forgotten since.
        """
        beyond = min(floors.graves, floors.catalogue)
        if beyond:
            self._drop(self.catalogue.remove_where(lambda entry: entry.version <= beyond))

    def disown(self, hashes: Iterable[int], buckets: Sequence[int], floors: Floors) -> list[Entry]:
        """Entries that another region lacks; those that it may have deleted leave here as well.

        floors: of the other region. Returns the others: they are to be offered to it.
        """
        lacking = set(hashes)
        found = [
            entry
            for entry in self.catalogue.in_buckets(buckets, 0)
            if record_hash(entry.key, entry.version) in lacking
        ]
        old = [entry for entry in found if entry.version <= floors.graves]
        for entry in old:
            self.catalogue.remove(entry.key)
        self._drop(old)
        return [entry for entry in found if entry.version > floors.graves]

    # comparing

    @property
    def floors(self) -> Floors:
        return Floors(self.graves.floor, self.catalogue_floor)

    def digests(self, floors: Floors) -> bytes:
        """Eight bytes a bucket, of all above `floors`."""
        found = self.catalogue.digests(floors.catalogue)
        for grave in self.graves.all():
            if grave.version > floors.graves:
                found[bucket_of(grave.target)] ^= grave_hash(grave)
        return _packed(found)

    def hashes(self, buckets: Sequence[int], floors: Floors) -> dict[int, Entry | Grave]:
        """All above `floors` in these buckets, by hash."""
        wanted = set(buckets)
        found: dict[int, Entry | Grave] = {
            record_hash(entry.key, entry.version): entry
            for entry in self.catalogue.in_buckets(buckets, floors.catalogue)
        }
        for grave in self.graves.all():
            if grave.version > floors.graves and bucket_of(grave.target) in wanted:
                found[grave_hash(grave)] = grave
        return found

    # coming back

    def restore(
        self, entries: Iterable[Entry], graves: Iterable[Grave], numbers: dict[str, int]
    ) -> None:
        """What the journal kept. Bytes of what died meanwhile are unwanted."""
        self.graves.raise_floor(numbers.get("grave_floor", 0))
        self.catalogue_floor = numbers.get("catalogue_floor", 0)
        self._ceiling = numbers.get("ceiling", 0)
        self.clock.see(self._ceiling)
        for grave in graves:
            self.clock.see(grave.version)
            self.graves.dig(grave)
        for entry in entries:
            self.clock.see(entry.version)
            if entry.version <= self.graves.covering(entry.key, entry.tenant, entry.model):
                # Told to the journal once more: a power cut took its drop, and the grave may be
                # forgotten before the next restart (seed 1420 of the histories).
                self._drop([entry])
            else:
                self.catalogue.set(entry)

    # within

    def _tick(self, wall_ms: int) -> int:
        version = self.clock.tick(wall_ms)
        if version > self._ceiling:
            self._ceiling = version + (CEILING_MS << TIME_SHIFT)
            self.changes.append(Change("number", name="ceiling", number=self._ceiling))
        return version

    def _keep(self, entry: Entry) -> None:
        known = self.catalogue.get(entry.key)
        if known is not None:
            entry.hits += known.hits
        self.catalogue.set(entry)
        self.changes.append(Change("set", entry))
        gone = self.catalogue.forget()
        if gone:
            self.catalogue_floor = max(self.catalogue_floor, *(one.version for one in gone))
            self._number("catalogue_floor", self.catalogue_floor)
            self._drop(gone)

    def _remove_covered(self, grave: Grave) -> None:
        if grave.kind == "key":
            entry = self.catalogue.get(grave.target)
            dead = [entry] if entry is not None and entry.version <= grave.version else []
            for one in dead:
                self.catalogue.remove(one.key)
        else:
            kind, target, version = grave.kind, grave.target, grave.version
            dead = self.catalogue.remove_where(
                lambda one: (
                    one.version <= version
                    and (one.tenant if kind == "tenant" else one.model) == target
                )
            )
        self._drop(dead)

    def _forget_graves(self) -> None:
        gone = self.graves.forget(self.clock.last)
        if gone:
            self.changes += [Change("forget", grave=grave) for grave in gone]
            self._number("grave_floor", self.graves.floor)

    def _number(self, name: str, number: int) -> None:
        self.changes.append(Change("number", name=name, number=number))

    def _drop(self, entries: Sequence[Entry]) -> None:
        self.unwanted += entries
        self.changes += [Change("drop", key=entry.key) for entry in entries]


def _packed(numbers: Sequence[int]) -> bytes:
    assert len(numbers) == BUCKETS
    packed = array.array("Q", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
