"""Versions of general values: 64 bits that grow with every write, and with time (a hybrid clock).

Refuses to go back when the wall clock does, and to follow a version from the far future: one host
with a wrong clock must not win for ever.

    version = milliseconds since the epoch << 20 | counter << 12 | writer
(Kulkarni et al., Logical Physical Clocks, OPODIS 2014.) The writer is 12 random bits, so that two
hosts that write at the same moment do not both believe that they were the last.
"""

from __future__ import annotations

import secrets

from bul.clock import Clock

__all__ = ["VersionClock"]

WRITER_BITS = 12
TIME_BITS = 20
AHEAD_MS_MAX = 300_000


class VersionClock:
    """Not thread-safe. A full counter runs into the next millisecond."""

    def __init__(self, clock: Clock, writer: int | None = None) -> None:
        self._clock = clock
        self._writer = secrets.randbits(WRITER_BITS) if writer is None else writer
        self._last = 0

    def next(self) -> int:
        """Larger than all that were made or observed."""
        ticks = self._now_ms() << TIME_BITS - WRITER_BITS
        self._last = max((self._last >> WRITER_BITS) + 1, ticks) << WRITER_BITS | self._writer
        return self._last

    def observe(self, version: int) -> None:
        """Somebody else made `version`."""
        if version >> TIME_BITS <= self._now_ms() + AHEAD_MS_MAX:
            self._last = max(self._last, version)

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)
