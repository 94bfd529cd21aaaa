"""Every system call of the disk tier, in one object that can be passed in.

Refuses to interpret errors: an `OSError` goes up as it came. The faults of
`bul.testing.disk_faults` sit here, which is why nothing in this folder calls `os` for I/O.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path

from bul.blocks.prefix import Buffer

__all__ = ["DIR_MODE", "FILE_MODE", "IOV_MAX", "DiskIO", "Handle"]

DIR_MODE = 0o700
FILE_MODE = 0o600
IOV_MAX = 512
_LOCK_POLL_S = 0.002


class Handle:
    """An open file that closes when nobody holds it any more.

    Reference counting is the point: an evicted cache entry must not close a descriptor that
    another thread reads from, because its number could be somebody else's file by then.
    """

    __slots__ = ("_io", "fd")

    def __init__(self, io: DiskIO, fd: int) -> None:
        self._io = io
        self.fd = fd

    def close(self) -> None:
        """Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                self._io.close(fd)

    def __del__(self) -> None:
        self.close()


class DiskIO:
    """The system calls, plainly. Offsets and sizes in bytes; errors are `OSError`."""

    def open(self, path: Path, flags: int) -> Handle:
        return Handle(self, os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE))

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file (or above 2 GiB)."""
        return os.pread(fd, size, offset)

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fill the buffers, at most 512, with one call; may be short at the end of the file."""
        return os.preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """One gathered write of at most 512 buffers; may be short."""
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def allocate(self, fd: int, size: int) -> None:
        """Reserve the first `size` bytes, so that writing them cannot run out of space."""
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)

    def names(self, path: Path) -> list[str]:
        return [entry.name for entry in path.iterdir()]

    def files(self, path: Path) -> list[str]:
        """Names of regular files only."""
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]

    def stat(self, path: Path) -> os.stat_result:
        return path.lstat()

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def try_lock(self, fd: int, *, shared: bool = False) -> bool:
        """Take a flock if it is free. Goes with the descriptor, so also with a kill -9."""
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(self, fd: int, timeout_s: float) -> None:
        """Take a flock within `timeout_s`, else raise TimeoutError (an OSError).

        Polls rather than blocks: its holder may be stopped, and a disk tier never hangs.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self.try_lock(fd):
            if time.monotonic() >= deadline_s:
                raise TimeoutError(errno.ETIMEDOUT, "the cache folder's lock is held by another")
            time.sleep(_LOCK_POLL_S)

    def unlock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)

    # Built from the calls above, so that a fault in one of them shows here too.

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write everything from `offset`; returns the end. Short writes are continued."""
        if len(buffers) <= IOV_MAX:
            done = self.pwritev(fd, buffers, offset)
            if done == sum(map(len, buffers)):
                return offset + done
        # Many buffers, or a short write: again from the start, in pieces.
        rest = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while rest:
            done = self.pwritev(fd, rest[:IOV_MAX], offset)
            if done <= 0:
                raise OSError(errno.EIO, "a write made no progress")
            offset += done
            while rest and done >= len(rest[0]):
                done -= len(rest.pop(0))
            if done:
                rest[0] = rest[0][done:]
        return offset

    def read_exact(self, fd: int, size: int, offset: int) -> bytes:
        """`size` bytes, or fewer at the end of the file; goes on after partial reads."""
        data = self.pread(fd, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        have = len(data)
        while have < size and parts[-1]:
            parts.append(self.pread(fd, size - have, offset + have))
            have += len(parts[-1])
        return b"".join(parts)

    def sync_folder(self, path: Path) -> None:
        """Make names durable."""
        handle = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.fsync(handle.fd)
        finally:
            handle.close()

    def replace_file(self, path: Path, data: bytes, *, durable: bool) -> None:
        """Write a temporary file, then rename it over `path`: so readers never see half."""
        temporary = path.with_name(path.name + ".tmp")
        handle = self.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            self.write_all(handle.fd, [data], 0)
            if durable:
                self.fsync(handle.fd)
        finally:
            handle.close()
        self.rename(temporary, path)
        if durable:
            self.sync_folder(path.parent)
