"""Who may scale: one loop per region, by a lock on a file that dies with its holder.

Refuses to wait: whoever does not hold the lease looks again at the next tick. The lock is the
kernel's (`flock`), so a killed leader leaves nothing to clean up; a lease with an expiry would
need clocks to agree.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Protocol

__all__ = ["FileLease", "Lease"]


class Lease(Protocol):
    """The right to scale, asked for at every tick."""

    def held(self) -> bool:
        """Whether this loop is the leader now; takes a free lease."""
        ...

    def release(self) -> None: ...


class FileLease:
    """The lease of all loops on this host that name the same `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def held(self) -> bool:
        """True as long as the lock is ours and the file is still the one at `path`."""
        if self._file is not None:
            if self._is_at_path(self._file):
                return True
            self.release()
        self._file = self._locked()
        return self._file is not None

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _locked(self) -> int | None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_at_path(file):
                return file
        except OSError:
            pass
        os.close(file)
        return None

    def _is_at_path(self, file: int) -> bool:
        """A removed file can be locked too; two loops would then both lead."""
        with contextlib.suppress(OSError):
            mine, there = os.fstat(file), self._path.stat()
            return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
        return False
