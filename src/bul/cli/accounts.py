"""Which database of keys and usage a command means, opened."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

from bul.cli.state_folder import DEFAULT_FOLDER

if typing.TYPE_CHECKING:
    import sqlalchemy as sa

    from bul.config import Settings

__all__ = ["FILE_NAME", "open_accounts", "with_accounts"]

FILE_NAME = "accounts.db"


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
    return dataclasses.replace(settings, accounts=accounts)
