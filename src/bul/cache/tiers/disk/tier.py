"""The disk tier: blocks in segment files that all replicas of a host share.

Refuses to serve a byte that its record's header does not vouch for, to grow beyond its budget, and
to raise for what a disk does: an I/O error while running is a miss or a dropped write, and a
counter. Only a folder that cannot be used at start-up raises (TierUnavailable, with a hint).

    get:  index (a hint) -> one read of the record -> header and payload verified -> a view of it
    set:  encode -> append to this process's segment -> fsync (policy) -> publish in the index
    room: whole segments go, oldest first; what was used since moves on (`room.py`)

Open in this order: `tier.py`, `publish.py`, `segments.py`, `index.py`, `room.py`, `folder.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from bul.blocks.chain import KEY_BYTES
from bul.blocks.identity import Identity
from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, CheckReport
from bul.cache.tiers.disk.ages import segment_ages
from bul.cache.tiers.disk.append import Appender
from bul.cache.tiers.disk.check import check_folder
from bul.cache.tiers.disk.counters import Counters
from bul.cache.tiers.disk.folder import Folder, unusable
from bul.cache.tiers.disk.hottest import hottest_chains
from bul.cache.tiers.disk.index import BUCKETS_MIN, DiskIndex
from bul.cache.tiers.disk.io import DiskIO
from bul.cache.tiers.disk.publish import Publisher
from bul.cache.tiers.disk.read import Reader, own_key
from bul.cache.tiers.disk.rebuild import rebuild_index
from bul.cache.tiers.disk.room import RoomMaker
from bul.cache.tiers.disk.segments import SegmentFiles
from bul.clock import Clock, SystemClock
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable

__all__ = ["DiskTier", "open_disk_tier"]

OPEN_LOCK_S: Final = 120.0
"""How long a starting replica waits for another that rebuilds the index."""
LOCK_S: Final = 2.0
SWEEP_S: Final = 10.0
BYTES_FOR_A_BUCKET: Final = 16 << 20
BUCKETS_AT_FIRST_MAX: Final = 1024
"""A new index holds what a large folder will soon hold: growing costs 5 us for each block."""


def open_disk_tier(
    config: KVCacheConfig, identity: Identity | bytes, *, clock: Clock | None = None
) -> DiskTier:
    """The tier that `[cache]` describes. Raises TierUnavailable with a hint."""
    if not config.persistence_dir:
        raise TierUnavailable("enable_persistence needs a folder", hint="set persistence_dir")
    return DiskTier(
        Path(config.persistence_dir),
        identity,
        bytes_max=config.disk_bytes_max,
        fsync=config.fsync,
        fsync_interval_s=config.fsync_interval_s,
        compression=config.compression,
        clock=clock,
    )


class DiskTier:
    """A `Tier` over one folder and one identity; any number of processes may have it open.

    bytes_max: the folder's budget, all identities together. fsync: "always" syncs before a set
    returns, "interval" every `fsync_interval_s`, "none" leaves it to the kernel; a kill -9 loses
    nothing that was acknowledged under any of them. Raises TierUnavailable.
    """

    name = "disk"

    def __init__(
        self,
        root: Path,
        identity: Identity | bytes,
        *,
        bytes_max: int,
        fsync: str = "interval",
        fsync_interval_s: float = 5.0,
        compression: str = "none",
        clock: Clock | None = None,
        io: DiskIO | None = None,
    ) -> None:
        self._identity = identity if isinstance(identity, bytes) else identity.digest()
        assert len(self._identity) == KEY_BYTES, len(self._identity)
        self._clock: Clock = clock or SystemClock()
        self._io = io or DiskIO()
        self._bytes_max = bytes_max
        self._compression = compression
        self._durable = fsync != "none"
        self._counters = Counters()
        self._closed = threading.Event()
        try:
            self._start(root, identity, fsync)
        except TierUnavailable as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EIO:
                raise
            # One I/O error is no broken disk: only the second says that it cannot be used.
            self._start(root, identity, fsync)
        self._thread = threading.Thread(
            target=self._maintain,
            args=(fsync_interval_s if fsync == "interval" else 0.0,),
            name="bul-disk",
            daemon=True,
        )
        self._thread.start()

    def _start(self, root: Path, identity: Identity | bytes, fsync: str) -> None:
        self._folder = Folder(root, self._identity, self._io, OPEN_LOCK_S)
        try:
            self._attach(fsync)
            self._open(identity)
        except OSError as error:
            self._folder.close()
            raise unusable(root, error) from error

    def _attach(self, fsync: str) -> None:
        folder, io = self._folder, self._io
        buckets = min(max(BUCKETS_MIN, self._bytes_max // BYTES_FOR_A_BUCKET), BUCKETS_AT_FIRST_MAX)
        self._index = DiskIndex(folder.path / "index", self._identity, io, LOCK_S, buckets)
        always = fsync == "always"
        self._files = SegmentFiles(folder.path, self._identity, io, sync_marks=always)
        self._reader = Reader(
            folder,
            self._files,
            self._index,
            io,
            identity=self._identity,
            clock=self._clock,
            counters=self._counters,
        )
        self._room = RoomMaker(
            folder,
            self._files,
            self._index,
            io,
            bytes_max=self._bytes_max,
            durable=self._durable,
            clock=self._clock,
            counters=self._counters,
        )
        self._appender = Appender(
            folder,
            self._files,
            self._room,
            io,
            identity=self._identity,
            bytes_max=self._bytes_max,
            fsync=fsync,
            clock=self._clock,
            counters=self._counters,
        )
        self._publisher = Publisher(
            folder,
            self._files,
            self._index,
            self._reader,
            self._appender,
            self._room,
            identity=self._identity,
            compression=self._compression,
            bytes_max=self._bytes_max,
            clock=self._clock,
            counters=self._counters,
        )

    def _open(self, identity: Identity | bytes) -> None:
        started_s = self._clock.now_s()
        folder = self._folder
        with folder.locked():
            alone = folder.enter()
            folder.refresh()
            clean = alone and folder.take_clean_mark()
            if alone:
                folder.remove_leftovers()
            with contextlib.suppress(OSError):
                # Of a full disk: then there is nothing to make room with, and room comes first.
                self._room.seal_abandoned()
            if (alone and not clean) or not self._index.open():
                rebuilt = rebuild_index(folder, self._files, self._index, self._io)
                self._counters.add("rebuilt_blocks_total", rebuilt)
            with contextlib.suppress(OSError):
                self._room.make_room(0)
            self._describe(identity)
        folder.lock_timeout_s = LOCK_S
        self._open_s = self._clock.now_s() - started_s

    def _describe(self, identity: Identity | bytes) -> None:
        """identity.json: for `bul cache explain` and for people; nothing is decided by it."""
        fields = {} if isinstance(identity, bytes) else asdict(identity)
        text = json.dumps({"digest": self._identity.hex(), **fields}, indent=2)
        path = self._folder.path / "identity.json"
        if not path.exists():
            self._io.replace_file(path, text.encode(), durable=False)

    # -- the contract ----------------------------------------------------------------------

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading keys the index knows; about 3 us each, no record is read."""
        try:
            self._reader.follow()
            for count, key in enumerate(keys):
                entry = self._index.lookup(own_key(key))
                if entry is None or not self._reader.is_live(entry):
                    return count
        except OSError:
            self._counters.add("io_errors_total")
            return 0
        return len(keys)

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        """Verified payloads as read-only views, each over a buffer of its own."""
        self._refuse_if_closed()
        found = self._reader.get_many([own_key(key) for key in keys])
        hits = [len(payload) for payload in found if payload is not None]
        self._counters.add_reads(len(hits), len(found) - len(hits), sum(hits))
        return found

    def set(self, records: Sequence[BlockRecord]) -> int:
        """Append what is not here yet, in one batch; returns how many are here now."""
        self._refuse_if_closed()
        return self._publisher.set(records)

    def delete(self, keys: Sequence[bytes]) -> int:
        """Take the records back in place, then forget them: a rebuild does not bring them back."""
        self._refuse_if_closed()
        deleted = 0
        try:
            self._reader.follow()
            for key in map(own_key, keys):
                entry = self._index.lookup(key)
                if entry is None:
                    continue
                self._files.mark_dead(entry.sequence, entry.offset, key)
                with self._index.locked():
                    removed = self._index.remove(key, entry.sequence, entry.offset)
                deleted += removed and self._reader.is_live(entry)
        except OSError:
            self._counters.add("io_errors_total")
        self._counters.add("deleted_blocks_total", deleted)
        return deleted

    def clear(self) -> None:
        """Drop every segment of this identity, whoever wrote it."""
        self._refuse_if_closed()
        try:
            self._appender.forget()
            with self._folder.locked():
                for sequence in self._folder.sequences(self._folder.path):
                    self._folder.drop(sequence)
                self._folder.changed()
                self._files.forget(None)
                rebuild_index(self._folder, self._files, self._index, self._io)
        except OSError:
            self._counters.add("io_errors_total")

    def stats(self) -> Mapping[str, float]:
        """Counters of this process, gauges of the folder."""
        totals = self._counters.snapshot()
        try:
            self._reader.follow()
            totals["bytes"] = float(self._folder.used_bytes())
            totals["blocks"] = float(self._index.count(self._folder.live))
            wall_s = self._clock.wall_s()
            totals |= segment_ages(self._files, self._folder.live, self._io, wall_s)
        except OSError:
            self._counters.add("io_errors_total")
        totals["bytes_max"] = float(self._bytes_max)
        totals["segments"] = float(len(self._folder.live))
        totals["suspect_segments"] = float(len(self._reader.suspect))
        totals["index_bytes"] = float(self._index.file_bytes)
        totals["open_s"] = self._open_s
        return totals

    def hottest(self, blocks_max: int) -> Iterator[list[bytes]]:
        """Chains of this identity that were used last; see `hottest.py`."""
        return hottest_chains(self._index, self._files, self._folder.live, self._io, blocks_max)

    def check(self, *, fix: bool = False) -> CheckReport:
        """Read everything, compare both ways; with `fix`, make them agree."""
        self._refuse_if_closed()
        try:
            self._reader.follow()
            report = check_folder(self._folder, self._files, self._index, self._io, fix=fix)
        except OSError as error:
            return CheckReport(blocks=0, bytes=0, problems=(f"cannot be read: {error}",))
        if fix:
            self._reader.suspect.clear()
        return report

    def close(self) -> None:
        """Seal, sync, and leave the mark of a clean end if nobody else is in. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join(timeout=LOCK_S)
        with contextlib.suppress(OSError):
            self._appender.close()
            with self._folder.locked():
                if self._folder.leave():
                    if self._durable:
                        self._index.sync()
                    self._folder.set_clean_mark()
        self._index.close()
        self._files.forget(None)
        self._folder.close()

    # -- upkeep ----------------------------------------------------------------------------

    def _refuse_if_closed(self) -> None:
        if self._closed.is_set():
            raise TierUnavailable("the disk tier is closed")

    def _maintain(self, fsync_interval_s: float) -> None:
        """Sync by the interval; take over the segments of those who were killed."""
        swept_s = self._clock.now_s()
        while not self._closed.wait(fsync_interval_s or 1.0):
            try:
                if fsync_interval_s:
                    self._appender.sync()
                if self._clock.now_s() - swept_s >= SWEEP_S:
                    swept_s = self._clock.now_s()
                    with self._folder.locked():
                        self._room.seal_abandoned()
            except OSError:
                self._counters.add("io_errors_total")
