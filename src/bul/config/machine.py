"""How large this machine is, as far as this process may use it.

Refuses to guess beyond the system's word: a control group's memory limit counts where there is one.
"""

from __future__ import annotations

import os
from pathlib import Path

from bul.config.sizing import Machine

__all__ = ["this_machine"]

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def this_machine(folder: Path, *, replicas: int = 1) -> Machine:
    """folder: where KV will lie; it need not exist yet."""
    return Machine(
        ram_bytes=_ram_bytes(),
        cores=max(1, len(os.sched_getaffinity(0))),
        disk_free_bytes=_free_bytes(folder.absolute()),
        replicas=replicas,
    )


def _ram_bytes() -> int:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(CGROUP_LIMIT.read_text("ascii")))
    except (OSError, ValueError):  # no control group, or "max"
        return machine


def _free_bytes(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize
