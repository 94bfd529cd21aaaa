"""Whether to compress what goes over one link: by what was measured, not by belief.

Refuses to compress where that loses: KV rows are nearly noise, and a fast link moves them raw
sooner than zstd packs them. Worked number: 64 kB that shrink to 60 at 300 MB/s take 0.2 ms to
pack; on a link of 10 MB/s they save 0.4 ms, on one of 100 MB/s 0.04.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CHOICES", "Benefit"]

CHOICES: Final = ("none", "lz4", "zstd")
DECAY = 1 - 1 / 16
SAMPLE_EVERY = 64


class Benefit:
    """Of one link. Feed it measurements; ask `choice`."""

    __slots__ = ("_bytes", "_count", "_measured", "_seconds")

    def __init__(self) -> None:
        self._bytes = self._seconds = 0.0
        self._count = 0
        self._measured: dict[str, tuple[float, float, float]] = {}

    def sent(self, size_bytes: int, seconds: float) -> None:
        """So many bytes took so long on the way, without the round trip itself."""
        if size_bytes > 0 and seconds > 0:
            self._bytes = self._bytes * DECAY + size_bytes
            self._seconds = self._seconds * DECAY + seconds

    def packed(self, name: str, raw_bytes: int, packed_bytes: int, seconds: float) -> None:
        """A sample was compressed with `name`."""
        raw, small, took = self._measured.get(name, (0.0, 0.0, 0.0))
        self._measured[name] = (
            raw * DECAY + raw_bytes,
            small * DECAY + packed_bytes,
            took * DECAY + seconds,
        )

    def wants_sample(self) -> bool:
        """True for the first block and then for every 64th: try each choice on it."""
        self._count += 1
        return self._count % SAMPLE_EVERY == 1

    @property
    def choice(self) -> str:
        """What moves a byte soonest; "none" until measured."""
        if not self._seconds:
            return "none"
        on_wire_s = self._seconds / self._bytes
        costs = {"none": on_wire_s}
        for name, (raw, small, took) in self._measured.items():
            if raw:
                costs[name] = took / raw + on_wire_s * small / raw
        return min(costs, key=lambda name: (costs[name], CHOICES.index(name)))
