"""A log that can never fill the disk: two files of at most half the budget each.

Refuses to fail its caller: when the disk is full, lines are dropped and counted.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

__all__ = ["BoundedLog"]


class BoundedLog:
    """Appends to `path`; when it reaches half of `bytes_max` it becomes `path.1`."""

    def __init__(self, path: Path, bytes_max: int = 8 << 20) -> None:
        self._path = path
        self._half = bytes_max // 2
        self._file: BinaryIO | None = None
        self.dropped = 0

    def write(self, data: bytes) -> None:
        """Never raises for the disk's faults. `data` beyond half the budget is cut."""
        try:
            file = self._open()
            if file.tell() + len(data) > self._half:
                file = self._rotate()
            file.write(data[-self._half :])
            file.flush()
        except OSError:
            self.dropped += 1

    def tail(self, lines: int) -> list[str]:
        """The last lines written, for a finding; an empty list if there are none."""
        with contextlib.suppress(OSError):
            data = self._path.read_bytes()[-65536:]
            return data.decode(errors="replace").splitlines()[-lines:]
        return []

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
        return self._file

    def _rotate(self) -> BinaryIO:
        self.close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        return self._open()
