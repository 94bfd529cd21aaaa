"""The folder that the replicas of a host share: its namespaces, locks, numbers and budget.

Refuses to keep books about space: what counts against the budget is what the file system says
that our files occupy, at the moment somebody wants more. A ledger would drift with every crash;
a `stat` of some hundred files costs a millisecond, once for each segment of many MiB.

    persistence_dir/
      lock                       held (flock) by whoever makes or takes room
      <identity, 40 hex>/        one namespace for each identity
        identity.json            what the identity is made of, for people
        users.lock               held shared by every open tier
        clean                    there exactly while nobody is in and the last one left in order
        state                    generation (raised by every change of segments), next number
        index, index.lock
        0000000001.seg ...
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bul.cache.tiers.disk.io import DIR_MODE, DiskIO, Handle
from bul.cache.tiers.disk.segments import segment_name, sequence_of
from bul.errors import TierUnavailable

__all__ = ["Folder", "namespace_name"]

_STATE = struct.Struct("<QQ")
_SEQUENCE_MAX: Final = 0xFFFF_FF00
OWN_NAMES: Final = frozenset(
    {"identity.json", "users.lock", "clean", "state", "index", "index.lock"}
)
TEMPORARY_SUFFIX: Final = ".tmp"


def namespace_name(identity: bytes) -> str:
    """The folder of an identity: 20 bytes of its digest are enough to tell, whole ones to trust."""
    return identity.hex()[:40]


def is_namespace(name: str) -> bool:
    return len(name) == 40 and all(c in "0123456789abcdef" for c in name)


def is_own(name: str) -> bool:
    """Whether a name inside a namespace is one of ours; everything else is left alone."""
    base = name.removesuffix(TEMPORARY_SUFFIX)
    return base in OWN_NAMES or sequence_of(name) is not None


class Folder:
    """One identity's place in a shared folder."""

    def __init__(self, root: Path, identity: bytes, io: DiskIO, lock_timeout_s: float) -> None:
        """Creates the folders. Raises TierUnavailable, with what to do, if that cannot work."""
        self.root = root
        self.path = root / namespace_name(identity)
        self._io = io
        self.lock_timeout_s = lock_timeout_s
        self._threads = threading.Lock()
        self._generation = -1
        self.live: set[int] = set()
        self.newest = 0
        try:
            io.mkdir(root)
            self._make_private(self.path)
            self._lock_file = self._file(root / "lock")
            self._users_file = self._file(self.path / "users.lock")
            self._state_file = self._file(self.path / "state")
        except OSError as error:
            raise unusable(root, error) from error

    def _make_private(self, path: Path) -> None:
        # Only ours: persistence_dir itself may be somebody's /tmp.
        self._io.mkdir(path)
        if self._io.stat(path).st_mode & 0o077:
            path.chmod(DIR_MODE)

    def _file(self, path: Path) -> Handle:
        return self._io.open(path, os.O_RDWR | os.O_CREAT)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder's lock: threads first, then processes. Raises TimeoutError, an OSError."""
        if not self._threads.acquire(timeout=self.lock_timeout_s):
            raise TimeoutError(errno.ETIMEDOUT, "another thread is making room")
        try:
            self._io.lock(self._lock_file.fd, self.lock_timeout_s)
            try:
                yield
            finally:
                self._io.unlock(self._lock_file.fd)
        finally:
            self._threads.release()

    # -- who is in -------------------------------------------------------------------------

    def enter(self) -> bool:
        """Join the users; `True` if nobody else is in. Under the lock."""
        alone = self._io.try_lock(self._users_file.fd)
        if not self._io.try_lock(self._users_file.fd, shared=True):
            raise TimeoutError(errno.ETIMEDOUT, "users.lock is held by a foreign program")
        return alone

    def leave(self) -> bool:
        """Leave the users; `True` if nobody else is in any more. Under the lock."""
        alone = self._io.try_lock(self._users_file.fd)
        self._io.unlock(self._users_file.fd)
        return alone

    def in_use(self, namespace: Path) -> bool:
        """Whether any process has the namespace open."""
        try:
            handle = self._io.open(namespace / "users.lock", os.O_RDWR | os.O_CREAT)
            return not self._io.try_lock(handle.fd)
        except OSError:
            return True

    def take_clean_mark(self) -> bool:
        """Whether the last one left in order; the mark is gone afterwards."""
        try:
            self._io.unlink(self.path / "clean")
        except FileNotFoundError:
            return False
        self._io.sync_folder(self.path)
        return True

    def set_clean_mark(self) -> None:
        self._io.replace_file(self.path / "clean", b"", durable=True)

    def close(self) -> None:
        for handle in (self._lock_file, self._users_file, self._state_file):
            handle.close()

    # -- segments --------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Follow what others did; `True` if `live` changed. One small read when nothing did."""
        generation = self._state()[0]
        if generation == self._generation:
            return False
        self.live = set(self.sequences(self.path))
        self.newest = max(self.live, default=0)
        self._generation = generation
        return True

    def _state(self) -> tuple[int, int]:
        data = self._io.pread(self._state_file.fd, _STATE.size, 0)
        if len(data) < _STATE.size:
            return 0, 0
        generation, following = _STATE.unpack(data)
        return generation, following

    def changed_elsewhere(self, namespace: Path) -> None:
        """Tell the users of another namespace that one of their segments is gone."""
        handle = self._file(namespace / "state")
        data = self._io.pread(handle.fd, _STATE.size, 0).ljust(_STATE.size, b"\0")
        generation, number = _STATE.unpack(data)
        packed = _STATE.pack((generation + 1) % (1 << 63), number)
        self._io.write_all(handle.fd, [packed], 0)

    def changed(self, *, following: int | None = None) -> None:
        """Tell everyone that the set of segments changed. Under the lock."""
        generation, number = self._state()
        packed = _STATE.pack((generation + 1) % (1 << 63), following or number)
        self._io.write_all(self._state_file.fd, [packed], 0)
        self.refresh()

    def next_sequence(self) -> int:
        """A number that no segment has had. Under the lock."""
        following = self._state()[1]
        above = max(self.sequences(self.path), default=0) + 1
        # A damaged state file may say anything; what lies there decides.
        return following if above <= following < above + (1 << 20) else above

    def sequences(self, namespace: Path) -> list[int]:
        """Numbers of the segment files there, oldest first."""
        found = (sequence_of(name) for name in self._io.files(namespace))
        return sorted(number for number in found if number is not None and number < _SEQUENCE_MAX)

    def drop(self, sequence: int, namespace: Path | None = None) -> None:
        """Give a segment's space back, also if somebody still has it open. Under the lock."""
        path = (namespace or self.path) / segment_name(sequence)
        with contextlib.suppress(FileNotFoundError):
            handle = self._io.open(path, os.O_WRONLY)
            self._io.unlink(path)
            self._io.truncate(handle.fd, 0)
            handle.close()

    # -- space -----------------------------------------------------------------------------

    def namespaces(self) -> list[Path]:
        """All identities' folders."""
        return [self.root / name for name in self._io.names(self.root) if is_namespace(name)]

    def used_bytes(self) -> int:
        """What our files occupy on disk, all identities together, as `du` would say."""
        total = self._occupied(self.root) + self._occupied(self.root / "lock")
        for namespace in self.namespaces():
            total += self._occupied(namespace)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in self._io.files(namespace):
                    if is_own(name):
                        total += self._occupied(namespace / name)
        return total

    def _occupied(self, path: Path) -> int:
        try:
            return self._io.stat(path).st_blocks * 512
        except FileNotFoundError:
            return 0

    def foreign_names(self) -> list[str]:
        """Files in our namespace that are not ours; never touched."""
        own = {name for name in self._io.files(self.path) if is_own(name)}
        return sorted(set(self._io.names(self.path)) - own)

    def remove_leftovers(self) -> None:
        """Remove temporary files of those who were killed. Only while nobody else is in."""
        for name in self._io.files(self.path):
            if name.endswith(TEMPORARY_SUFFIX) and is_own(name):
                self._io.unlink(self.path / name)


def unusable(root: Path, error: OSError) -> TierUnavailable:
    """The one line for a person: what is wrong with the folder, and what to do."""
    hints = {
        errno.ENOTDIR: "persistence_dir must be a folder; a file is in its place",
        errno.EEXIST: "persistence_dir must be a folder; a file is in its place",
        errno.EROFS: "the file system is mounted read-only; remount it or set persistence_dir",
        errno.EACCES: f"give user {os.getuid()} the folder, or set persistence_dir elsewhere",
        errno.EPERM: f"give user {os.getuid()} the folder, or set persistence_dir elsewhere",
        errno.ENOSPC: "the file system is full; free space or set persistence_dir elsewhere",
        errno.EMFILE: "too many open files; raise `ulimit -n`",
    }
    hint = hints.get(error.errno or 0, "look at the file system, or set persistence_dir elsewhere")
    return TierUnavailable(f"the disk cache cannot use {root}: {error.strerror}", hint=hint)
