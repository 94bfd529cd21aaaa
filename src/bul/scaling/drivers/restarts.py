"""When to start a dead replica again: short waits first, then a named crash loop.

Pure: time is an argument and nothing sleeps here. Refuses to give up for ever - a machine that
gets its disk back should get its replica back - except for a setting that cannot work (exit
code 2), which no repetition mends.

    lives cut short in a row   1     2     3     4     5 and more
    wait before the next       0.2   0.4   0.8   1.6   30 s, state "failed"
"""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["BAD_USAGE", "Restart", "RestartLimits", "Restarts", "after_exit"]

BAD_USAGE = 2
"""Exit code of a replica whose settings are wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RestartLimits:
    """A life that was ready for `steady_s` or longer counts as a good one."""

    wait_first_s: float = 0.2
    crashes_max: int = 5
    wait_crash_loop_s: float = 30.0
    steady_s: float = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Restarts:
    """The state between lives: how many in a row were cut short."""

    crashes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """What to do now. `wait_s` None: never again. `state` is what to show while waiting."""

    wait_s: float | None
    state: Literal["pending", "failed"]
    reason: str


def after_exit(
    limits: RestartLimits, state: Restarts, *, exit_code: int, ready_for_s: float | None
) -> tuple[Restart, Restarts]:
    """Judge one death. ready_for_s: how long it had been ready, None if it never was."""
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    if exit_code == BAD_USAGE and ready_for_s is None:
        return Restart(wait_s=None, state="failed", reason=f"{how}: its settings are wrong"), state
    if ready_for_s is not None and ready_for_s >= limits.steady_s:
        return Restart(wait_s=limits.wait_first_s, state="pending", reason=how), Restarts(crashes=1)
    crashes = state.crashes + 1
    if crashes >= limits.crashes_max:
        reason = f"{how}: crash loop, {crashes} lives in a row cut short"
        wait = Restart(wait_s=limits.wait_crash_loop_s, state="failed", reason=reason)
        return wait, Restarts(crashes=crashes)
    wait_s = limits.wait_first_s * 2 ** (crashes - 1)
    return Restart(wait_s=wait_s, state="pending", reason=how), Restarts(crashes=crashes)
