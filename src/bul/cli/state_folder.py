"""The state folder: the one place where a region on this machine leaves anything.

Refuses to be used by two regions at once; the system drops the lock when its owner dies, so a
killed region never has to be cleaned up after by hand.

    .bul/up.lock      held while the region runs; holds the owner's process id
    .bul/logs/*.log   what the replicas said, bounded
    .bul/cache/       KV on disk, bounded (`persistence.py`)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from bul.errors import ConfigError

__all__ = ["DEFAULT_FOLDER", "state_folder"]

DEFAULT_FOLDER = ".bul"
LOCK_FILE = "up.lock"


@contextlib.contextmanager
def state_folder(name: str) -> Iterator[Path]:
    """The folder, made and locked. Raises ConfigError if it is in use or cannot be written."""
    folder = Path(name or DEFAULT_FOLDER).resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "choose another one with --state-dir"
        message = f"cannot use the state folder {folder}: {error.strerror}"
        raise ConfigError(message, hint=hint) from error
    try:
        _lock(descriptor, folder)
        yield folder
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        hint = "stop it, or choose another folder with --state-dir"
        message = f"a region already runs in {folder}, process {owner}"
        raise ConfigError(message, hint=hint) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
