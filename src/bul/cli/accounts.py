"""Which database of keys and usage a command means, opened."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

from bul.cli.state_folder import DEFAULT_FOLDER

if typing.TYPE_CHECKING:
    import sqlalchemy as sa

    from bul.accounts.book import RegionBook
    from bul.accounts.keeper import AccountsKeeper
    from bul.accounts.ledger import Ledger
    from bul.accounts.ring import KeyRing
    from bul.config import Settings

__all__ = [
    "FILE_NAME",
    "Accounts",
    "kept_accounts",
    "open_accounts",
    "open_if_there",
    "region_name",
    "with_accounts",
]

FILE_NAME = "accounts.db"
LOAD_S = 5.0
"""A start waits so long for the database's keys; later they come in beside the requests."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Accounts:
    """Of one process. keeper: None without a database: then nothing is billed. book: of a region's
    supervisor.
    """

    ring: KeyRing
    ledger: Ledger
    keeper: AccountsKeeper | None
    book: RegionBook | None = None

    def stats(self) -> typing.Mapping[str, float]:
        """For the metrics; empty without a database."""
        return self.keeper.stats() if self.keeper is not None else {}


@contextlib.contextmanager
def kept_accounts(settings: Settings, *, has_book: bool = False) -> Iterator[Accounts]:
    """Keys and ledger, kept up to date until the block ends; then what is left is written.

    has_book: for the one process that writes a region's decisions and replica-hours.
    """
    from bul.accounts.book import RegionBook
    from bul.accounts.keeper import AccountsKeeper
    from bul.accounts.ledger import Ledger
    from bul.accounts.ring import KeyRing
    from bul.clock import SystemClock

    url = settings.accounts.database_url
    ring, ledger = KeyRing(settings.keys, has_database=bool(url)), Ledger()
    if not url:
        yield Accounts(ring=ring, ledger=ledger, keeper=None)
        return
    region = region_name(settings)
    book = RegionBook(region) if has_book else None
    keeper = AccountsKeeper(
        url,
        ring,
        ledger,
        clock=SystemClock(),
        interval_s=settings.accounts.interval_s,
        region=region,
        book=book,
        keep_days=settings.accounts.keep_days,
    )
    try:
        keeper.wait_loaded(LOAD_S)
        yield Accounts(ring=ring, ledger=ledger, keeper=keeper, book=book)
    finally:
        keeper.close()


def region_name(settings: Settings) -> str:
    """Under which a region's usage, decisions and hours are kept."""
    from bul.accounts.usage import DEFAULT_REGION

    return settings.regions.name or DEFAULT_REGION


def open_if_there(settings: Settings) -> sa.Engine | None:
    """As `open_accounts`, but None rather than a new file."""
    folder = Path(settings.up.state_dir or DEFAULT_FOLDER)
    if settings.accounts.database_url or (folder / FILE_NAME).exists():
        return open_accounts(settings)
    return None


def open_accounts(settings: Settings) -> sa.Engine:
    """`accounts.database_url`, else the state folder's own, which is made if it is not there.

    Raises ConfigError or AccountsUnavailable.
    """
    from bul.accounts.database import open_database
    from bul.errors import AccountsUnavailable

    if settings.accounts.database_url:
        return open_database(settings.accounts.database_url)
    folder = Path(settings.up.state_dir or DEFAULT_FOLDER).resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AccountsUnavailable(
            f"cannot make the state folder {folder}: {error.strerror}",
            hint="choose another one with --state-dir, or set accounts.database_url",
        ) from error
    return open_database(database_url(folder))


def database_url(folder: Path) -> str:
    """Of the SQLite file in a state folder."""
    from bul.accounts.database import sqlite_url

    return sqlite_url(folder / FILE_NAME)


def with_accounts(settings: Settings, folder: Path) -> Settings:
    """The settings of a region: with a database of its own unless one is named."""
    if settings.accounts.database_url:
        return settings
    accounts = dataclasses.replace(settings.accounts, database_url=database_url(folder))
    origins = {**settings.origins, "accounts.database_url": "the state folder"}
    return dataclasses.replace(settings, accounts=accounts, origins=origins)
