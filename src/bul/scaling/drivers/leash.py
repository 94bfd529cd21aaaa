"""Runs a command that the kernel kills when its parent dies: `python leash.py PARENT COMMAND...`.

Refuses to start an orphan: if the parent died before the leash was on, it ends at once. A
program of its own because code between fork and exec is not safe in a process with threads;
uses the standard library alone, so that `python -I -S` starts it in about 15 ms.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__: list[str] = []

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Replaces this process by `command`. The leash survives exec."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the command is our own, from the driver


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
