"""When something was written or deleted, so that all regions agree: hybrid logical clock, graves.

Refuses to bring back what was deleted. A grave (a tombstone with a version) covers one key, one
tenant or one model: whatever is not newer than it is dead, in whichever order the news arrive.

A version is one number of 64 bits, larger is later:

    | 42 bits: ms since the epoch | 12 bits: counter | 10 bits: the region's tag |

The clock never falls behind a version that it has seen ("Logical Physical Clocks", Kulkarni et
al., OPODIS 2014), so a delete that follows a write in any region also has the larger version,
however wrong that region's wall clock is. The counter spills into the milliseconds; the tag decides
between two writes that know nothing of each other.

Graves are bounded. To forget one is safe only if nothing that it covers can still arrive, so the
**floor** rises to its version: unknown things at or below the floor are refused for good. That is
the price of a bounded memory: something that is older than the oldest forgotten grave, and that a
region has not got by then, it will never get. For a cache that is a miss.
"""

from __future__ import annotations

import dataclasses
from hashlib import blake2b
from typing import Final, Literal

__all__ = [
    "TAG_BITS",
    "Grave",
    "GraveKind",
    "Graves",
    "HybridClock",
    "region_tag",
    "tenant_tag",
    "version_wall_ms",
]

TAG_BITS: Final = 10
COUNTER_BITS: Final = 12
TIME_SHIFT: Final = TAG_BITS + COUNTER_BITS

GraveKind = Literal["key", "tenant", "model"]


def region_tag(region: str) -> int:
    """Ten bits of the region's name; two regions of one world must not share them."""
    digest = blake2b(region.encode(), digest_size=2, person=b"bul-region").digest()
    return int.from_bytes(digest, "little") & ((1 << TAG_BITS) - 1)


def tenant_tag(tenant: str) -> bytes:
    """Eight bytes of the tenant's name, b"" for none: other regions need not know the name."""
    if not tenant:
        return b""
    return blake2b(tenant.encode(), digest_size=8, person=b"bul-tenant").digest()


def version_wall_ms(version: int) -> int:
    """About when it was made, in ms since the epoch."""
    return version >> TIME_SHIFT


class HybridClock:
    """Versions of one region. The wall clock is an argument; it may jump.

    skew_ms_max: a version from further in the future than this is not believed.
    """

    __slots__ = ("_last", "_skew_ms_max", "_tag")

    def __init__(self, region: str, *, last: int = 0, skew_ms_max: int = 300_000) -> None:
        self._tag = region_tag(region)
        self._last = last >> TAG_BITS
        self._skew_ms_max = skew_ms_max

    @property
    def last(self) -> int:
        """The newest version made or seen; to be kept across a restart."""
        return self._last << TAG_BITS | self._tag

    def tick(self, wall_ms: int) -> int:
        """A version later than all made or seen."""
        self._last = max(wall_ms << COUNTER_BITS, self._last + 1)
        return self.last

    def believes(self, version: int, wall_ms: int) -> bool:
        """Whether it is not absurdly far in the future."""
        ahead_ms = max(wall_ms, self._last >> COUNTER_BITS) + self._skew_ms_max
        return version_wall_ms(version) <= ahead_ms

    def see(self, version: int) -> None:
        """Never fall behind it."""
        self._last = max(self._last, version >> TAG_BITS)


@dataclasses.dataclass(frozen=True, slots=True)
class Grave:
    """All of `target` up to `version` is dead. target: a key, a tenant's tag, an identity."""

    kind: GraveKind
    target: bytes
    version: int


class Graves:
    """What has been deleted. Bounded: `graves_max`, and `horizon_ms` behind the newest version."""

    def __init__(
        self, *, graves_max: int = 65_536, horizon_ms: int = 7 * 86_400_000, floor: int = 0
    ) -> None:
        self._graves_max = graves_max
        self._horizon_ms = horizon_ms
        self._versions: dict[tuple[GraveKind, bytes], int] = {}
        self.floor = floor
        """Nothing unknown that is not newer than this is taken in any more."""
        self.forgotten_total = 0
        self.purge_version = 0
        """Of the newest purge of a tenant or a model, also of one that was forgotten since."""

    def __len__(self) -> int:
        return len(self._versions)

    def all(self) -> list[Grave]:
        """Every grave, in no order."""
        return [Grave(kind, target, version) for (kind, target), version in self._versions.items()]

    def version_of(self, kind: GraveKind, target: bytes) -> int:
        """0 if there is none."""
        return self._versions.get((kind, target), 0)

    def covering(self, key: bytes, tenant: bytes, model: bytes) -> int:
        """The newest version that is dead for such a thing; 0 if nothing is."""
        find = self._versions.get
        return max(find(("key", key), 0), find(("tenant", tenant), 0), find(("model", model), 0))

    def dig(self, grave: Grave) -> bool:
        """Remember it; False if it says nothing new."""
        name = grave.kind, grave.target
        if grave.version <= self._versions.get(name, self.floor):
            return False
        self._versions[name] = grave.version
        if grave.kind != "key":
            self.purge_version = max(self.purge_version, grave.version)
        return True

    def forget(self, newest: int) -> list[Grave]:
        """Forget what is too much or beyond the horizon; the floor rises. Which they were."""
        horizon = max(0, version_wall_ms(newest) - self._horizon_ms) << TIME_SHIFT
        over = len(self._versions) - self._graves_max
        if over <= 0 and not self._has_older(horizon):
            return []
        by_age = sorted(self.all(), key=lambda grave: grave.version)
        # A sixteenth more than needed, so that sorting is rare.
        surplus = over + self._graves_max // 16 if over > 0 else 0
        gone = [g for i, g in enumerate(by_age) if i < surplus or g.version < horizon]
        for grave in gone:
            del self._versions[grave.kind, grave.target]
            self.raise_floor(grave.version)
        self.forgotten_total += len(gone)
        return gone

    def raise_floor(self, version: int) -> None:
        """Something up to `version` was forgotten."""
        self.floor = max(self.floor, version)

    def _has_older(self, horizon: int) -> bool:
        if not horizon or not self._versions:
            return False
        # Insertion order is nearly version order: the first one tells well enough.
        return next(iter(self._versions.values())) < horizon
