"""How much of the machine this process uses, from /proc and the control group.

Refuses to guess: where a figure cannot be read it is None.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["CpuMeter", "memory_utilization"]

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CPU_WINDOW_S_MIN = 0.5


class CpuMeter:
    """CPU seconds per second and usable core, between two calls."""

    def __init__(self) -> None:
        self._cores = max(1, len(os.sched_getaffinity(0)))
        self._at_s = time.monotonic()
        self._used_s = time.process_time()
        self._last: float | None = None

    def utilization(self) -> float | None:
        """In [0, 1]; None until half a second has passed. Remembers the moment of the call."""
        now_s, used_s = time.monotonic(), time.process_time()
        if now_s - self._at_s >= CPU_WINDOW_S_MIN:
            share = (used_s - self._used_s) / (now_s - self._at_s) / self._cores
            self._last = min(1.0, share)
            self._at_s, self._used_s = now_s, used_s
        return self._last


def memory_utilization() -> float | None:
    """Resident bytes over what the control group, else the machine, allows; in [0, 1]."""
    try:
        resident = int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
    return min(1.0, resident / _memory_bytes())


def _memory_bytes() -> int:
    machine = os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES
    try:
        return min(machine, int(CGROUP_LIMIT.read_text("ascii")))
    except (OSError, ValueError):  # no control group, or "max"
        return machine
