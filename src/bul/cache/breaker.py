"""A breaker: stop asking what keeps failing, ask again now and then. A state machine, no clock.

It refuses to count time by itself: every call takes `now_s`.

    closed --failures_max in a row--> open --pause over--> one probe --ok--> closed
                                        ^----- probe failed, pause doubled -----|
"""

from __future__ import annotations

__all__ = ["BREAKER_PAUSE_S_MAX", "Breaker"]

BREAKER_PAUSE_S_MAX = 60.0


class Breaker:
    """failures_max: in a row, until it opens. pause_s: first pause; doubles up to pause_s_max."""

    __slots__ = (
        "_failures",
        "_failures_max",
        "_next_pause_s",
        "_open_until_s",
        "_pause_s",
        "_pause_s_max",
        "opened_total",
    )

    def __init__(
        self,
        *,
        failures_max: int = 3,
        pause_s: float = 1.0,
        pause_s_max: float = BREAKER_PAUSE_S_MAX,
    ) -> None:
        self._failures_max = failures_max
        self._pause_s = pause_s
        self._pause_s_max = pause_s_max
        self._failures = 0
        self._next_pause_s = pause_s
        self._open_until_s: float | None = None
        self.opened_total = 0

    @property
    def is_open(self) -> bool:
        """Shut off, or waiting for a probe's outcome."""
        return self._open_until_s is not None

    def allow(self, now_s: float) -> bool:
        """Whether to ask now. After a pause this is True once: that call is the probe."""
        if self._open_until_s is None:
            return True
        if now_s < self._open_until_s:
            return False
        # The probe is out. If nobody ever tells its outcome, the next one may go after a pause.
        self._open_until_s = now_s + self._next_pause_s
        return True

    def record(self, *, ok: bool, now_s: float) -> None:
        """The outcome of a call."""
        if ok:
            self._failures = 0
            self._open_until_s = None
            self._next_pause_s = self._pause_s
            return
        self._failures += 1
        if self._open_until_s is not None:
            self._next_pause_s = min(self._pause_s_max, 2 * self._next_pause_s)
        elif self._failures < self._failures_max:
            return
        self.opened_total += 1
        self._open_until_s = now_s + self._next_pause_s
