"""Kills and power cuts: processes use a store, are stopped dead, and what is left is read.

It refuses to know the store: anything with `set(records) -> int` and `get(keys)` that can be opened
by path. What a block must contain follows from its key, so that a wrong byte is seen by whoever
reads it. `python -m bul.testing.disk_crash --help` runs cycles of it and prints one JSON document.

A cycle: fork the workers; each writes chains, notes in a file of its own (on another file system)
what was acknowledged, and reads its own and its neighbours' chains; after a random time all are
killed, and for a power cut the file system first stops where it is. Then the folder is opened
again: every acknowledged block must be there (`lost`), and no block may be wrong (`wrong`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from bul.blocks.chain import block_keys, chain_root
from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord
from bul.cache.tiers.disk import DiskTier
from bul.errors import TierUnavailable
from bul.testing.disk_faults import LoopDisk

__all__ = ["NaiveStore", "RenamingStore", "Store", "chain", "run_cycles"]

IDENTITY = b"c" * 32
ROOMY_BYTES = 256 << 20
TIGHT_BYTES = 1 << 20
LOOP_BYTES = 96 << 20
LOOP_BUDGET_BYTES = 64 << 20
_NUMBER = struct.Struct("<Q")


class Store(Protocol):
    """As much of a tier as the cycles need."""

    def set(self, records: Sequence[BlockRecord]) -> int: ...
    def get(self, keys: Sequence[bytes]) -> Sequence[Buffer | None]: ...
    def close(self) -> None: ...


def chain(number: int) -> list[BlockRecord]:
    """Chain `number`: four blocks of 0.5 to 33 KB whose bytes follow from their keys.

    All chains of a worker (the upper half of the number) begin with the same block.
    """
    tokens = [number >> 32, number & 0xFFFF_FFFF, 0, 0]
    keys = block_keys(chain_root(IDENTITY, b""), tokens, 1)
    return [
        BlockRecord(key=key, parent=parent, tokens=1, payload=payload_of(key))
        for key, parent in zip(keys, [b"", *keys[:-1]], strict=True)
    ]


def payload_of(key: bytes) -> bytes:
    """The only right bytes of a block."""
    size = 500 + int.from_bytes(key[:2], "little") // 2
    return (key * (size // len(key) + 1))[:size]


class NaiveStore:
    """The control for kills: a file for each block, opened and written in place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def set(self, records: Sequence[BlockRecord]) -> int:
        for record in records:
            (self._folder / record.key.hex()).write_bytes(record.payload)
        return len(records)

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        return [self._get(self._folder / key.hex()) for key in keys]

    def _get(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except OSError:
            return None

    def close(self) -> None:
        pass


class RenamingStore(NaiveStore):
    """The control for power cuts: a temporary file, renamed, never synced."""

    def set(self, records: Sequence[BlockRecord]) -> int:
        for record in records:
            path = self._folder / record.key.hex()
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            temporary.write_bytes(record.payload)
            temporary.rename(path)
        return len(records)


def _disk(bytes_max: int, fsync: str) -> Callable[[Path], Store]:
    return lambda folder: DiskTier(
        folder, IDENTITY, bytes_max=bytes_max, fsync=fsync, fsync_interval_s=0.02
    )


def wrong_blocks(keys: Sequence[bytes], blocks: Sequence[Buffer | None]) -> int:
    """How many of the blocks are not what their keys say."""
    return sum(
        block is not None and block != payload_of(key)
        for key, block in zip(keys, blocks, strict=True)
    )


def _work(open_store: Callable[[Path], Store], folder: Path, worker: int, notes: Path) -> None:
    """One worker's life; ends by SIGKILL, or with the file system. Never returns."""
    acks = os.open(notes / f"{worker}.acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    wrong = os.open(notes / f"{worker}.wrong", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    dice = random.Random(worker)
    try:
        store = open_store(folder)
    except (OSError, TierUnavailable):
        os._exit(0)
    for step in range(1 << 30):
        records = chain(worker << 32 | step)
        try:
            if store.set(records) == len(records):
                os.write(acks, _NUMBER.pack(worker << 32 | step))
            other = worker // 8 * 8 + dice.randrange(3)
            for reread in (records, chain(other << 32 | dice.randrange(step + 1))):
                keys = [record.key for record in reread]
                os.write(wrong, b"!" * wrong_blocks(keys, store.get(keys)))
        except OSError:
            os._exit(0)  # a control's write fails once the power is off


def _fork(open_store: Callable[[Path], Store], folder: Path, worker: int, notes: Path) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _work(open_store, folder, worker, notes)
        finally:
            os._exit(1)
    return pid


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), "a worker raised"


def _acknowledged(notes: Path) -> Iterator[int]:
    for path in notes.glob("*.acks"):
        data = path.read_bytes()
        yield from (number for (number,) in _NUMBER.iter_unpack(data[: len(data) // 8 * 8]))


def _judge(store: Store, notes: Path) -> dict[str, int]:
    """Read back everything acknowledged, and what was under way; count."""
    wrong = sum(path.stat().st_size for path in notes.glob("*.wrong"))
    lost = blocks = 0
    numbers = sorted(_acknowledged(notes))
    for number in numbers:
        keys = [record.key for record in chain(number)]
        found = store.get(keys)
        wrong += wrong_blocks(keys, found)
        lost += sum(block is None for block in found)
        blocks += len(keys)
    for last in {number >> 32: number for number in numbers}.values():
        keys = [record.key for record in chain(last + 1)]
        wrong += wrong_blocks(keys, store.get(keys))
    return {"acknowledged": blocks, "lost": lost, "wrong": wrong}


@contextmanager
def _notes() -> Iterator[Path]:
    # The notes must survive the power cut: not on the disk under test.
    path = Path(tempfile.mkdtemp(prefix="bul-crash-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def run_cycles(
    open_store: Callable[[Path], Store],
    folder: Path,
    *,
    cycles: int,
    workers: int,
    seed: int,
    fresh: bool,
    loop: LoopDisk | None = None,
) -> dict[str, int]:
    """Totals over `cycles`. fresh: a new subfolder each time. loop: cut its power, too."""
    dice = random.Random(seed)
    totals = {"cycles": cycles, "acknowledged": 0, "lost": 0, "wrong": 0}
    for cycle in range(cycles):
        place = folder / (f"{cycle}" if fresh else "kept")
        with _notes() as notes:
            pids = [
                _fork(open_store, place, cycle * 8 + worker, notes) for worker in range(workers)
            ]
            time.sleep(dice.uniform(0.02, 0.15))
            if loop is None:
                # One dies among the living first; then the rest at once.
                _kill([pids.pop(dice.randrange(len(pids)))])
                time.sleep(dice.uniform(0.0, 0.05))
                _kill(pids)
            else:
                loop.cut_power()
                _kill(pids)
                loop.power_on()
            store = open_store(place)
            for name, count in _judge(store, notes).items():
                totals[name] += count
            store.close()
        if fresh:
            shutil.rmtree(place)
    return totals


def main() -> None:
    """Run cycles and print what they counted; exit code 1 if a promise broke."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m bul.testing.disk_crash --kind kill --cycles 60",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", choices=["kill", "churn", "power"], default="kill")
    parser.add_argument("--store", choices=["disk", "naive", "renaming"], default="disk")
    parser.add_argument("--fsync", choices=["none", "interval", "always"], default="interval")
    parser.add_argument("--cycles", type=int, default=60)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=4)
    given = parser.parse_args()
    budget = {"kill": ROOMY_BYTES, "churn": TIGHT_BYTES, "power": LOOP_BUDGET_BYTES}[given.kind]
    controls: dict[str, Callable[[Path], Store]] = {
        "naive": NaiveStore,
        "renaming": RenamingStore,
    }
    open_store = controls.get(given.store) or _disk(budget, given.fsync)
    folder = Path(tempfile.mkdtemp(prefix="bul-crash-"))
    loop = LoopDisk(folder, LOOP_BYTES) if given.kind == "power" else None
    started_s = time.monotonic()
    with loop or nullcontext():
        totals = run_cycles(
            open_store,
            loop.path if loop else folder,
            cycles=given.cycles,
            workers=given.workers,
            seed=given.seed,
            fresh=given.kind != "churn",
            loop=loop,
        )
    shutil.rmtree(folder)
    totals["seconds"] = round(time.monotonic() - started_s)
    sys.stdout.write(json.dumps(totals) + "\n")
    kept = given.kind == "kill" or (given.kind == "power" and given.fsync == "always")
    sys.exit(bool(totals["wrong"] or (kept and totals["lost"])))


if __name__ == "__main__":
    main()
