"""Faults of the C library under a running engine: libfiu makes one call fail, then the next one.

It refuses wildcards and chance: each named point fails at its first call, then at its second, and
so on until a whole visit passes without it, and what never fired is an error of the harness.
`python -m bul.testing.disk_libfiu` must run with the environment of `libfiu_environment`; it prints
one JSON document: for each point how often it was called and failed, and what came of it.

A visit: start an engine over a disk tier (fsync "always"), ask for prefixes old and new, flush, end
it, and open the folder again without faults. `failed` requests raised or never settled, `wrong`
blocks have other bytes than their keys say, `lost` ones were neither dropped and counted nor are
they there. `refused_starts` are engines that said at start-up that the folder cannot be used.

CPython's gathered reads and writes go to `preadv2` and `pwritev2`, which libfiu does not know, so
the tier gets them by libc's older names (`LibcIO`): the same kernel calls, and points that fire.
libfiu has no point for posix_fallocate, mkdir, rmdir, flock and stat: `FaultyIO` has.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from bul.blocks.prefix import Buffer
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk import DiskTier
from bul.cache.tiers.disk.io import DiskIO
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable
from bul.testing.disk_crash import RenamingStore, chain, wrong_blocks
from bul.testing.engines import settled

__all__ = ["LIBFIU_FOLDER", "READ_POINTS", "WRITE_POINTS", "libfiu_environment"]

LIBFIU_FOLDER: Final = Path(__file__).parents[3] / ".venv" / "opt" / "libfiu"
WRITE_POINTS: Final = (
    "posix/io/oc/open",
    "posix/io/rw/pwritev",
    "posix/io/rw/pwritev/reduce",
    "posix/io/rw/ftruncate",
    "posix/io/sync/fsync",
    "posix/io/sync/fdatasync",
    "posix/io/dir/rename",
    "posix/io/dir/unlink",
)
READ_POINTS: Final = ("posix/io/rw/pread", "posix/io/rw/preadv", "posix/io/dir/opendir")
EVICTION_POINTS: Final = ("posix/io/rw/ftruncate", "posix/io/dir/unlink")
NAIVE_POINTS: Final = ("posix/io/oc/open", "posix/io/rw/write", "posix/io/dir/rename")
SOME: Final = 8
"""Of reads, and of the control's calls, so many fail, spread over the visit."""
CALLS_MAX: Final = 1000
CHAINS: Final = 5
IDENTITY: Final = b"c" * 32
ROOMY_BYTES: Final = 2 << 20
"""Segments of 128 KiB: one is sealed and the next begun after every second chain."""
TIGHT_BYTES: Final = 224 << 10


def libfiu_environment(folder: Path = LIBFIU_FOLDER) -> dict[str, str]:
    """What a child needs for its C library calls to go through libfiu (`make servers`)."""
    return {
        "LD_LIBRARY_PATH": str(folder),
        "LD_PRELOAD": str(folder / "fiu" / "fiu_posix_preload.so"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


_Decide = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_int),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_uint),
)


class Libfiu:
    """Counts the calls of named points, and makes the nth call of one of them fail."""

    def __init__(self, points: Iterable[str], error: int) -> None:
        library = ctypes.CDLL("libfiu.so.0")
        self.calls: Counter[str] = Counter()
        self.fired = False
        self._error = error
        self._armed: tuple[str, int] | None = None
        self._decide = _Decide(self._called)  # kept: C holds a pointer to it
        enable: Any = library.fiu_enable_external
        enable.argtypes = (
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_uint,
            _Decide,
        )
        for point in points:
            assert "*" not in point
            if enable(point.encode(), 1, None, 0, self._decide) != 0:
                raise RuntimeError(f"libfiu cannot enable {point}")

    def arm(self, point: str, nth: int) -> None:
        """Start counting; the nth call of the point fails, once. 0: none does."""
        self.calls.clear()
        self.fired = False
        self._armed = (point, nth)

    def disarm(self) -> None:
        self._armed = None

    def _called(self, name: bytes, _number: Any, info: Any, _flags: Any) -> int:
        if self._armed is None:
            return 0
        point, nth = self._armed
        called = name.decode()
        self.calls[called] += 1
        if called != point or self.calls[called] != nth:
            return 0
        self.fired = True
        info[0] = self._error
        return 1


class LibcIO(DiskIO):
    """The disk tier's calls, the gathered ones by the names that libfiu stands in front of."""

    def __init__(self) -> None:
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        for name in ("preadv", "pwritev"):
            function = getattr(self._libc, name)
            function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long)
            function.restype = ctypes.c_ssize_t

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        return self._gathered(self._libc.preadv, fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return self._gathered(self._libc.pwritev, fd, buffers, offset)

    def _gathered(self, call: Any, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        views = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
        vector = np.array([(view.ctypes.data, view.nbytes) for view in views], np.uint64)
        done: int = call(fd, vector.ctypes.data, len(views), offset)
        if done < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return done


class TrustingIO(LibcIO):
    """The control: a store that does not look at what its writes and syncs return."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        with contextlib.suppress(OSError):
            return super().pwritev(fd, buffers, offset)
        return sum(map(len, buffers))

    def rename(self, source: Path, target: Path) -> None:
        with contextlib.suppress(OSError):
            super().rename(source, target)


class Cache(Protocol):
    """What a visit asks."""

    def ask(self, number: int) -> tuple[int, list[bytes]]:
        """One request for chain `number`: wrong blocks, and which keys it set. May raise."""
        ...

    def dropped(self) -> int:
        """How many blocks the store said so far that it did not keep."""
        ...

    def close(self) -> None: ...


class EngineCache:
    """A real engine whose RAM holds six blocks, so that older chains come from the disk."""

    def __init__(self, folder: Path, io: DiskIO, bytes_max: int = ROOMY_BYTES) -> None:
        tier = DiskTier(folder, IDENTITY, bytes_max=bytes_max, fsync="always", io=io)
        config = KVCacheConfig(
            max_tokens=6 * 64, eviction="lru", break_even=False, num_workers=2, prefetch_size=4
        )
        self._engine = UltraAdaptiveKVCacheEngine(config, identity=IDENTITY, tiers=[tier])

    def ask(self, number: int) -> tuple[int, list[bytes]]:
        records = chain(number)
        keys = [record.key for record in records]
        match = settled(self._engine.match_prefix(keys))
        found = len(match.blocks)
        wrong = wrong_blocks(keys[:found], match.blocks)
        self._engine.set_blocks(keys, found, [record.payload for record in records[found:]])
        match.release()
        if not self._engine.flush(10.0):
            raise TimeoutError("the writes hang")
        return wrong, keys[found:]

    def dropped(self) -> int:
        return int(self._engine.stats()["disk"]["queue_dropped_blocks_total"])

    def close(self) -> None:
        if not self._engine.close():
            raise TimeoutError("the engine does not end")


class NaiveCache:
    """The control: a file for each block, written and renamed, in the request's own thread."""

    def __init__(self, folder: Path, _io: DiskIO) -> None:
        self._store = RenamingStore(folder)

    def ask(self, number: int) -> tuple[int, list[bytes]]:
        records = chain(number)
        keys = [record.key for record in records]
        blocks = self._store.get(keys)
        if None not in blocks:
            return wrong_blocks(keys, blocks), []
        self._store.set(records)
        return wrong_blocks(keys, blocks), keys

    def dropped(self) -> int:
        return 0

    def close(self) -> None:
        pass


class Visits:
    """Visits with one fault each, and what came of them, by point."""

    def __init__(
        self, fiu: Libfiu, folder: Path, make: Callable[[Path], Cache], kept: Callable[[Path], Any]
    ) -> None:
        self._fiu = fiu
        self._folder = folder
        self._make = make
        self._kept = kept
        self.totals: dict[str, Counter[str]] = {}

    def fail_each(self, point: str, *, at_most: int = 0) -> None:
        """Visit with the 1st, 2nd, ... call failing; spread over `at_most` calls if given."""
        calls = self._visit(point, 0)
        step = max(1, -(-calls // at_most)) if at_most else 1
        nth = 1
        while self._visit(point, nth) and nth < CALLS_MAX:
            nth += step
        self.totals[point]["calls"] = calls

    def _visit(self, point: str, nth: int) -> int:
        """For nth = 0 the number of calls; else whether the fault fired."""
        seen = self.totals.setdefault(point, Counter())
        place = self._folder / "visit"
        self._fiu.arm(point, nth)
        acknowledged = self._use(place, seen)
        fired, calls = self._fiu.fired, self._fiu.calls[point]
        self._fiu.disarm()
        self._judge(place, acknowledged, seen)
        shutil.rmtree(place)
        seen["fired"] += fired
        return fired if nth else calls

    def _use(self, place: Path, seen: Counter[str]) -> list[bytes]:
        """The requests; the keys of those that were set without a drop."""
        try:
            cache = self._make(place)
        except TierUnavailable:
            seen["refused_starts"] += 1
            cache = self._make(place)  # there was one fault, and it is over
        acknowledged = []
        for number in (0, 1, 2, 0, *range(3, CHAINS), 1):
            before, new = cache.dropped(), list[bytes]()
            seen["requests"] += 1
            try:
                wrong, new = cache.ask(number)
                seen["wrong"] += wrong
            except (OSError, AssertionError):
                seen["failed"] += 1
            dropped = cache.dropped() - before
            seen["dropped"] += dropped
            if not dropped:
                acknowledged += new
        try:
            cache.close()
        except OSError:
            seen["failed"] += 1
        return acknowledged

    def _judge(self, place: Path, acknowledged: Sequence[bytes], seen: Counter[str]) -> None:
        store = self._kept(place)
        blocks = store.get(acknowledged)
        seen["acknowledged"] += len(acknowledged)
        seen["wrong"] += wrong_blocks(acknowledged, blocks)
        seen["lost"] += sum(block is None for block in blocks)
        store.close()


def _kinds() -> dict[str, tuple[Callable[[Path], Cache], Callable[[Path], Any], tuple[str, ...]]]:
    def disk(folder: Path) -> DiskTier:
        return DiskTier(folder, IDENTITY, bytes_max=ROOMY_BYTES, fsync="always")

    return {
        "disk": (
            lambda place: EngineCache(place, LibcIO()),
            disk,
            (*WRITE_POINTS, *READ_POINTS),
        ),
        "evicting": (
            lambda place: EngineCache(place, LibcIO(), TIGHT_BYTES),
            disk,
            EVICTION_POINTS,
        ),
        "trusting": (lambda place: EngineCache(place, TrustingIO()), disk, WRITE_POINTS[1:2]),
        "naive": (lambda place: NaiveCache(place, DiskIO()), RenamingStore, NAIVE_POINTS),
    }


def main() -> None:
    """Print what was seen, by point; exit code 0 whatever it was."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=list(_kinds()), default="disk")
    parser.add_argument("--error", choices=["EIO", "ENOSPC"], default="EIO")
    given = parser.parse_args()
    make, kept, points = _kinds()[given.store]
    fiu = Libfiu(points, getattr(errno, given.error))
    folder = Path(tempfile.mkdtemp(prefix="bul-libfiu-"))
    visits = Visits(fiu, folder, make, kept)
    make(folder / "visit").close()  # imports and first calls belong to nobody
    shutil.rmtree(folder / "visit")
    for point in points:
        visits.fail_each(
            point, at_most=0 if given.store == "disk" and point in WRITE_POINTS else SOME
        )
    shutil.rmtree(folder)
    sys.stdout.write(json.dumps(visits.totals) + "\n")


if __name__ == "__main__":
    main()
