"""A clock that moves only when a test says so. Refuses to go backwards, except on the wall."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """Both clocks in one place; `advance` moves both, `jump_wall` the wall clock alone."""

    def __init__(self, now_s: float = 1000.0, wall_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s
        self._wall_s = wall_s

    def now_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._wall_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` >= 0 pass."""
        assert seconds >= 0, seconds
        self._now_s += seconds
        self._wall_s += seconds

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forwards or back, as an operator or NTP would."""
        self._wall_s += seconds
