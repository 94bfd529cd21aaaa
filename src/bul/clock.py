"""The Clock contract: time is an argument, so that tests make it instead of sleeping it."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Seconds that never go backwards, and the wall clock beside them."""

    def now_s(self) -> float:
        """Monotonic seconds; only differences mean something."""
        ...

    def wall_s(self) -> float:
        """Seconds since the Unix epoch; may jump."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()
