"""What one region still has to be told: keys in order, bounded, the oldest dropped.

Refuses to hold payloads (they lie in the store) and to lose a grave for want of room before it has
lost every block: what is dropped here, anti-entropy finds again.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

from bul.regions.versions import Grave

__all__ = ["Batch", "Lags", "Outbox", "Pace"]


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Taken together: graves, and (key, seconds when it was queued)."""

    graves: tuple[Grave, ...]
    keys: tuple[tuple[bytes, float], ...]

    def __bool__(self) -> bool:
        return bool(self.graves or self.keys)


class Outbox:
    """At most `keys_max` keys and as many graves. Newer news of a key replace the older."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._keys: collections.OrderedDict[bytes, tuple[float, int]] = collections.OrderedDict()
        self._graves: collections.deque[Grave] = collections.deque()
        self.bytes = 0
        self.dropped_total = 0
        self.overflowed = False
        """Something was dropped since `mended`: the other region must be compared with."""

    def __len__(self) -> int:
        return len(self._keys) + len(self._graves)

    def add(self, key: bytes, size: int, now_s: float) -> None:
        """Queue news of `key`; its place in the queue is kept."""
        old = self._keys.get(key)
        self._keys[key] = (now_s if old is None else old[0], size)
        self.bytes += size - (0 if old is None else old[1])
        if len(self._keys) > self._keys_max:
            _, (_, dropped) = self._keys.popitem(last=False)
            self.bytes -= dropped
            self._drop()

    def bury(self, grave: Grave) -> None:
        self._graves.append(grave)
        if len(self._graves) > self._keys_max:
            self._graves.popleft()
            self._drop()

    def take(self, count_max: int, bytes_max: int) -> Batch:
        """The oldest; at least one if there is one."""
        graves = [self._graves.popleft() for _ in range(min(count_max, len(self._graves)))]
        keys: list[tuple[bytes, float]] = []
        size = 0
        while self._keys and len(keys) < count_max:
            key, (since_s, bytes_here) = next(iter(self._keys.items()))
            if keys and size + bytes_here > bytes_max:
                break
            del self._keys[key]
            self.bytes -= bytes_here
            size += bytes_here
            keys.append((key, since_s))
        return Batch(tuple(graves), tuple(keys))

    def give_back(self, batch: Batch, sizes: Sequence[int]) -> None:
        """It could not be told: back to the front, unless there are newer news."""
        for grave in reversed(batch.graves):
            self._graves.appendleft(grave)
        for (key, since_s), size in zip(reversed(batch.keys), reversed(sizes), strict=True):
            if key in self._keys:
                continue
            if len(self._keys) >= self._keys_max:
                self._drop()  # this is the oldest
                continue
            self._keys[key] = (since_s, size)
            self._keys.move_to_end(key, last=False)
            self.bytes += size

    def mended(self) -> None:
        """The other region has been compared with; nothing is missing because of a drop."""
        self.overflowed = False

    def oldest_s(self) -> float | None:
        """When the oldest key was queued."""
        return next(iter(self._keys.values()))[0] if self._keys else None

    def _drop(self) -> None:
        self.dropped_total += 1
        self.overflowed = True


class Pace:
    """A cap on bytes per second: a token bucket over one second. 0 is no cap."""

    __slots__ = ("_due_s", "rate_bytes_per_s")

    def __init__(self, rate_bytes_per_s: float = 0.0) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self._due_s = -math.inf

    def wait_s(self, size: int, now_s: float) -> float:
        """How long to wait before `size` bytes may go; counts them."""
        if not self.rate_bytes_per_s:
            return 0.0
        self._due_s = max(self._due_s, now_s - 1.0) + size / self.rate_bytes_per_s
        return max(0.0, self._due_s - now_s)


class Lags:
    """Seconds from a write here to its arrival there, of the last thousand."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: collections.deque[float] = collections.deque(maxlen=1000)

    def add(self, seconds: float) -> None:
        self._last.append(seconds)

    def quantile_s(self, share: float) -> float:
        """0.0 while there are none."""
        if not self._last:
            return 0.0
        ordered = sorted(self._last)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
