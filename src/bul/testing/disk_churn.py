"""Several processes write into one folder, and what it takes on disk is weighed all the while.

It refuses to weigh a moving folder: all writers stand still (SIGSTOP) while the blocks of every
file are added up, so that no file is counted that is gone before the next one is looked at.
`python -m bul.testing.disk_churn FOLDER STORE WORKER BYTES_MAX WRITE_BYTES` is one writer.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bul.cache.tiers.disk import DiskTier
from bul.testing.disk_crash import NaiveStore, Store, chain, wrong_blocks

__all__ = ["CHURN_IDENTITY", "bytes_on_disk", "start_writer", "weigh_until_done"]

CHURN_IDENTITY: Final = b"c" * 32
_POLL_S: Final = 0.005
_Writer = subprocess.Popen[bytes]


def start_writer(
    folder: Path, *, worker: int, bytes_max: int, write_bytes: int, store: str = "disk"
) -> _Writer:
    """One process that sets `write_bytes` of blocks, reading some of them again, and ends."""
    numbers = [str(number) for number in (worker, bytes_max, write_bytes)]
    command = [sys.executable, "-m", __name__, str(folder), store, *numbers]
    return subprocess.Popen(command)  # noqa: S603 - this module again, with numbers and a path


def bytes_on_disk(folder: Path) -> int:
    """What `du` adds up: the blocks of the folder and of everything in it."""
    return sum(path.lstat().st_blocks for path in (folder, *folder.rglob("*"))) * 512


def weigh_until_done(
    folder: Path, writers: Sequence[_Writer], enough: Callable[[Sequence[_Writer]], bool]
) -> int:
    """The most bytes on disk at any look, until `enough` of what is still running."""
    most = 0
    while True:
        running = [writer for writer in writers if writer.poll() is None]
        if enough(running):
            return most
        standing = [writer for writer in running if _stopped(writer)]
        most = max(most, bytes_on_disk(folder))
        for writer in standing:
            writer.send_signal(signal.SIGCONT)
        time.sleep(_POLL_S)


def _stopped(writer: _Writer) -> bool:
    """Stop it and wait until it is; `False` if it has ended instead. Its exit code is left."""
    os.kill(writer.pid, signal.SIGSTOP)  # not send_signal, which would reap it first
    event = os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return event is not None and event.si_code == os.CLD_STOPPED


def _open(store: str, folder: Path, bytes_max: int) -> Store:
    if store == "naive":
        return NaiveStore(folder)
    return DiskTier(folder, CHURN_IDENTITY, bytes_max=bytes_max, fsync="none")


def _write(store: Store, worker: int, write_bytes: int) -> int:
    """How many wrong blocks it read."""
    dice = random.Random(worker)
    written = step = wrong = 0
    while written < write_bytes:
        records = chain(worker << 32 | step)
        store.set(records)
        written += sum(len(record.payload) for record in records)
        keys = [record.key for record in chain(worker << 32 | dice.randrange(step + 1))]
        wrong += wrong_blocks(keys, store.get(keys))
        step += 1
    return wrong


def main() -> None:
    """Exit code 1 if it read a wrong block."""
    folder, name, *numbers = sys.argv[1:]
    worker, bytes_max, write_bytes = map(int, numbers)
    store = _open(name, Path(folder), bytes_max)
    wrong = _write(store, worker, write_bytes)
    store.close()
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
