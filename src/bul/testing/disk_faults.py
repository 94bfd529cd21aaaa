"""A disk that misbehaves on demand: the disk tier's system calls, with faults put in between.

It refuses to patch anything: a `FaultyIO` is handed to `DiskTier(io=...)`. Faults are by call name
("pwritev", "fdatasync", "rename", ...) and number, so that "every write fails once" is a loop.
Also here: a loop-mounted ext4 that can be filled and cut off from its power (root only).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bul.blocks.prefix import Buffer
from bul.cache.tiers.disk.io import DiskIO, Handle

__all__ = ["FAULT_CALLS", "FaultyIO", "LoopDisk", "SlowIO"]

FAULT_CALLS = (
    "open",
    "pread",
    "preadv",
    "pwritev",
    "fdatasync",
    "fsync",
    "allocate",
    "truncate",
    "unlink",
    "rename",
    "mkdir",
    "names",
    "files",
    "stat",
    "fstat",
    "try_lock",
)


class FaultyIO(DiskIO):
    """Counts calls, and makes the chosen ones fail with an errno.

    `fail("pwritev", nth=3, error=errno.EIO)` fails the third call from now on (1 is the next);
    `times` calls in a row fail, 0 means all from there on. A failing write may first write half.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._plans: dict[str, tuple[int, int, int, bool]] = {}
        self._lock = threading.Lock()

    def fail(
        self,
        call: str,
        *,
        nth: int = 1,
        error: int = errno.EIO,
        times: int = 1,
        torn: bool = False,
    ) -> None:
        """Plan a fault, replacing the one planned for this call."""
        assert call in FAULT_CALLS, call
        with self._lock:
            first = self.calls[call] + nth
            last = first + times if times else 1 << 62
            self._plans[call] = (first, last, error, torn)

    def heal(self) -> None:
        """Forget all planned faults."""
        with self._lock:
            self._plans.clear()

    def _fails(self, call: str) -> tuple[int, bool] | None:
        with self._lock:
            self.calls[call] += 1
            plan = self._plans.get(call)
            if plan is None or not plan[0] <= self.calls[call] < plan[1]:
                return None
            self.failed[call] += 1
            return plan[2], plan[3]

    def _pass(self, call: str) -> None:
        fault = self._fails(call)
        if fault is not None:
            raise OSError(fault[0], os.strerror(fault[0]))

    def open(self, path: Path, flags: int) -> Handle:
        self._pass("open")
        return super().open(path, flags)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._pass("pread")
        return super().pread(fd, size, offset)

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        self._pass("preadv")
        return super().preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        fault = self._fails("pwritev")
        if fault is not None:
            if fault[1]:
                whole = b"".join(bytes(buffer) for buffer in buffers)
                super().pwritev(fd, [whole[: len(whole) // 2]], offset)
            raise OSError(fault[0], os.strerror(fault[0]))
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._pass("fdatasync")
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._pass("fsync")
        super().fsync(fd)

    def allocate(self, fd: int, size: int) -> None:
        self._pass("allocate")
        super().allocate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        self._pass("truncate")
        super().truncate(fd, size)

    def unlink(self, path: Path) -> None:
        self._pass("unlink")
        super().unlink(path)

    def rename(self, source: Path, target: Path) -> None:
        self._pass("rename")
        super().rename(source, target)

    def mkdir(self, path: Path) -> None:
        self._pass("mkdir")
        super().mkdir(path)

    def names(self, path: Path) -> list[str]:
        self._pass("names")
        return super().names(path)

    def files(self, path: Path) -> list[str]:
        self._pass("files")
        return super().files(path)

    def stat(self, path: Path) -> os.stat_result:
        self._pass("stat")
        return super().stat(path)

    def fstat(self, fd: int) -> os.stat_result:
        self._pass("fstat")
        return super().fstat(fd)

    def try_lock(self, fd: int, *, shared: bool = False) -> bool:
        self._pass("try_lock")
        return super().try_lock(fd, shared=shared)


class SlowIO(DiskIO):
    """A disk whose reads of records take longer: a seek each, and a transfer by size.

    Reads below `small_bytes` (the index, headers) stay as fast as they are.
    """

    def __init__(self, *, seek_s: float, bytes_per_s: float, small_bytes: int = 4096) -> None:
        self._seek_s = seek_s
        self._bytes_per_s = bytes_per_s
        self._small_bytes = small_bytes

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if size >= self._small_bytes:
            time.sleep(self._seek_s + size / self._bytes_per_s)
        return super().pread(fd, size, offset)

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        size = sum(len(buffer) for buffer in buffers)
        time.sleep(self._seek_s + size / self._bytes_per_s)
        return super().preadv(fd, buffers, offset)


_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
REMOUNTS_MAX = 100
REMOUNT_PAUSE_S = 0.1


class LoopDisk:
    """An ext4 in a file, mounted while in the `with` block. Needs root, mkfs.ext4 and mount."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._image = folder / "disk.img"
        self.path = folder / "disk"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-m", "0", str(self._image))

    def __enter__(self) -> Self:
        self.mount()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Lazily: a test that failed may still have files open, and its message matters more.
        _run("umount", "--lazy", str(self.path))

    def mount(self, *, read_only: bool = False) -> None:
        mode = "ro" if read_only else "rw"
        _run("mount", "-o", f"loop,{mode},commit=1000", str(self._image), str(self.path))

    def unmount(self) -> None:
        _run("umount", str(self.path))

    def cut_power(self) -> None:
        """Stop the file system where it is: what was not synced is gone after `power_on`."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def power_on(self) -> None:
        """Unmount what is left and mount again, which replays the journal.

        Again while it is still off: a container that starts at this moment has a copy of every
        mount, and while it has, a new mount is the old file system.
        """
        for _ in range(REMOUNTS_MAX):
            self.unmount()
            self.mount()
            if self._is_on():
                return
            time.sleep(REMOUNT_PAUSE_S)
        raise TimeoutError(f"{self.path} stays off: who else has it mounted?")

    def _is_on(self) -> bool:
        probe = self.path / "is-on"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            if error.errno == errno.EIO:
                return False
            raise
        return True


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)  # noqa: S603  # fixed names
