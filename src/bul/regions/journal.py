"""What a region remembers across a crash: its catalogue, graves, floors. One SQLite file.

Refuses to answer "kept" for a delete before it is on the disk: graves and reserved versions are
synced (a power cut does not take them), the catalogue is written and left to the kernel (a killed
process does not take it). Refuses to guess about a damaged file: it starts anew, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bul.errors import ConfigError
from bul.regions.catalogue import Entry
from bul.regions.messages import Item, entry_of, item_of
from bul.regions.state import Change
from bul.regions.versions import Grave

__all__ = ["JOURNAL_FILE", "NoJournal", "SqliteJournal"]

JOURNAL_FILE = "regions.sqlite"
SCHEMA = """
create table if not exists entries (key blob primary key, item blob, present int) without rowid;
create table if not exists graves (kind text, target blob, version text,
    primary key (kind, target)) without rowid;
create table if not exists numbers (name text primary key, number text) without rowid;
"""
"""Versions are text: SQLite's integers have a sign."""

logger = logging.getLogger(__name__)


class NoJournal:
    """Keeps nothing: for caches whose bytes do not outlive the process either."""

    async def write(self, changes: Sequence[Change]) -> None:
        pass


class SqliteJournal:
    """One writer. Raises ConfigError if the file cannot be made."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError:
            logger.exception("%s is damaged: the region starts with an empty catalogue", path)
            with contextlib.suppress(OSError):
                path.unlink()
            self._connection = self._open()

    def load(self) -> tuple[list[Entry], list[Grave], dict[str, int]]:
        """What was kept; what cannot be read of it is left out."""
        run = self._connection.execute
        entries: list[Entry] = []
        for item, present in run("select item, present from entries"):
            with contextlib.suppress(msgspec.MsgspecError):
                found = msgspec.msgpack.decode(item, type=Item)
                entries.append(entry_of(found, present=bool(present)))
        graves = [
            Grave(kind, target, int(version))
            for kind, target, version in run("select kind, target, version from graves")
        ]
        numbers = {name: int(number) for name, number in run("select name, number from numbers")}
        return entries, graves, numbers

    async def write(self, changes: Sequence[Change]) -> None:
        """Returns when they are kept."""
        await asyncio.to_thread(self._write, list(changes))

    def close(self) -> None:
        self._connection.close()

    def _write(self, changes: Sequence[Change]) -> None:
        durable = any(change.durable for change in changes)
        with self._lock:
            run = self._connection.execute
            run(f"pragma synchronous = {'full' if durable else 'normal'}")
            run("begin")
            for change in changes:
                self._apply(change)
            run("commit")

    def _apply(self, change: Change) -> None:
        run = self._connection.execute
        if change.entry is not None:
            item = msgspec.msgpack.encode(item_of(change.entry))
            row = change.entry.key, item, change.entry.present
            run("insert or replace into entries values (?, ?, ?)", row)
        elif change.kind == "drop":
            run("delete from entries where key = ?", (change.key,))
        elif change.kind == "number":
            run("insert or replace into numbers values (?, ?)", (change.name, str(change.number)))
        elif change.grave is not None:
            grave = change.grave
            run("delete from graves where kind = ? and target = ?", (grave.kind, grave.target))
            if change.kind == "dig":
                row_of = grave.kind, grave.target, str(grave.version)
                run("insert into graves values (?, ?, ?)", row_of)

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=5.0
            )
        except (OSError, sqlite3.OperationalError) as error:
            raise ConfigError(f"cannot use {self._path}: {error}") from error
        connection.execute("pragma journal_mode = wal")
        connection.executescript(SCHEMA)
        return connection
