"""One thread beside the requests: writes usage and a region's book, and keeps the keys up to date.

Refuses to stop anything: while the database is away, keys are those last known and usage waits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial

import sqlalchemy as sa

from bul.accounts import records, store
from bul.accounts.book import RegionBook, day_of
from bul.accounts.database import open_database
from bul.accounts.ledger import Ledger
from bul.accounts.ring import KeyRing
from bul.accounts.usage import DEFAULT_REGION
from bul.clock import Clock
from bul.errors import AccountsUnavailable

__all__ = ["AccountsKeeper"]

BACKOFF_S_MAX = 5.0
BOOK_S = 10.0
TRIM_S = 3600.0
DAY_S = 86_400.0
LOG = logging.getLogger(__name__)
_AWAY = (AccountsUnavailable, sa.exc.SQLAlchemyError, OSError)


class AccountsKeeper:
    """url: the database's. Starts at once; `close` writes what is left.

    open_: how the database is opened; the default brings its tables up to date. book: only of the
    one writer of a region; written every book_interval_s, what is older than keep_days goes.
    """

    def __init__(
        self,
        url: str,
        ring: KeyRing,
        ledger: Ledger,
        *,
        clock: Clock,
        interval_s: float = 1.0,
        open_: Callable[[str], sa.Engine] = open_database,
        region: str = DEFAULT_REGION,
        book: RegionBook | None = None,
        book_interval_s: float = BOOK_S,
        keep_days: float = 0.0,
    ) -> None:
        self._region = region
        self._book = book
        self._book_interval_s = book_interval_s
        self._keep_days = keep_days
        self._book_at_s = self._trim_at_s = float("-inf")
        self._open = partial(open_, url)
        self._ring = ring
        self._ledger = ledger
        self._clock = clock
        self._interval_s = interval_s
        self._engine: sa.Engine | None = None
        self._stop = threading.Event()
        self._loaded = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._run, name="accounts", daemon=True)
        self._thread.start()

    def wait_loaded(self, timeout_s: float) -> bool:
        """Until the keys were read for the first time; False if they were not in time."""
        return self._loaded.wait(timeout_s)

    def stats(self) -> Mapping[str, float]:
        """The ledger's, and `database_away`: 1 while it is. The book has its own."""
        return {**self._ledger.stats(), "database_away": float(self._away)}

    def close(self, timeout_s: float = 5.0) -> float:
        """Write what is left and stop; returns how many requests could not be written."""
        self._stop.set()
        self._thread.join(timeout_s)
        left = self._ledger.stats()["usage_unwritten"]
        if left:
            LOG.warning("the usage of %d requests was not written: the database is away", left)
        if self._book is not None:
            _say_what_is_lost(self._book)
        return left

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            wait_s = self._interval_s if self._turn() else min(2 * wait_s + 0.1, BACKOFF_S_MAX)
        self._turn(last=True)
        if self._engine is not None:
            self._engine.dispose()

    def _turn(self, *, last: bool = False) -> bool:
        """False if the database did not do its part."""
        try:
            self._engine = self._engine or self._open()
            add = partial(store.add_usage, self._engine, region=self._region)
            self._ledger.write(add, self._clock.wall_s())
            if self._book is not None:
                self._keep(self._book, self._engine, last=last)
            self._ring.update(store.valid_digests(self._engine), ever=store.has_keys(self._engine))
        except _AWAY as error:
            if not self._away:
                LOG.warning("the accounts' database is away: %s", type(error).__name__)
            self._away = True
            return False
        if self._away:
            LOG.warning("the accounts' database is back")
        self._away = False
        self._loaded.set()
        return True

    def _keep(self, book: RegionBook, engine: sa.Engine, *, last: bool) -> None:
        now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        if not last and now_s - self._book_at_s < self._book_interval_s:
            return
        book.write(partial(records.add_records, engine, book.region), wall_s)
        day_s = day_of(wall_s)
        today = records.read_replica_hours(engine, since_s=day_s, region=book.region)
        book.know_day(day_s, sum(hour.replica_seconds for hour in today))
        self._book_at_s = now_s
        if self._keep_days and now_s - self._trim_at_s >= TRIM_S:
            records.trim(engine, book.region, wall_s - self._keep_days * DAY_S)
            self._trim_at_s = now_s


def _say_what_is_lost(book: RegionBook) -> None:
    stats = book.stats()
    left = (stats["region_decisions_unwritten"], stats["region_replica_seconds_unwritten"])
    if any(left):
        LOG.warning("%d decisions and %.0f replica-seconds were not written", *left)
