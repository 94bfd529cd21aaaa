"""Opens the accounts' database, SQLite by default or PostgreSQL, and brings its tables up to date.

Refuses to say a password: errors name the URL without it. Refuses to hang: every connection and
statement has a deadline.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from bul.errors import AccountsUnavailable, ConfigError

__all__ = ["open_database", "sqlite_url"]

CONNECT_S = 3
STATEMENT_MS = 5000
ADVISORY_LOCK = 0x42554C
_MIGRATING = threading.Lock()
"""Alembic keeps its state in a module."""


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{file}"


def open_database(url: str, *, migrate: bool = True) -> sa.Engine:
    """An engine whose tables are there. Raises ConfigError for a URL, AccountsUnavailable else."""
    engine = _engine(url)
    if migrate:
        _migrate(engine)
    return engine


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigError(
            "accounts.url is no database URL",
            hint="sqlite:////var/lib/bul/accounts.db or postgresql://bul@db/bul",
        ) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        engine = sa.create_engine(parsed, connect_args={"timeout": CONNECT_S})
        sa.event.listen(engine, "connect", _tune_sqlite)
        return engine
    if backend != "postgresql":
        raise ConfigError(f"accounts.url: {backend} is not known", hint="sqlite or postgresql")
    try:
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=2,
            max_overflow=2,
            pool_timeout=CONNECT_S,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_S,
                "options": f"-c statement_timeout={STATEMENT_MS}",
            },
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            "PostgreSQL needs its driver", hint="pip install 'bul[postgresql]'"
        ) from error


def _tune_sqlite(connection: Any, _: object) -> None:
    """Readers and one writer at the same time; a lost last second after a power cut is allowed."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _migrate(engine: sa.Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    try:
        with _MIGRATING, _alone(engine), engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (sa.exc.DBAPIError, OSError) as error:
        shown = engine.url.render_as_string(hide_password=True)
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        raise AccountsUnavailable(
            f"the accounts' database {shown} cannot be used: {type(cause).__name__}",
            hint="is it running, and may this user create tables?",
        ) from error


@contextlib.contextmanager
def _alone(engine: sa.Engine) -> Iterator[None]:
    """Replicas start at the same time; SQLite's own locks do not cover a change of tables."""
    file = engine.url.database
    if engine.dialect.name != "sqlite" or not file or file == ":memory:":
        yield
        return
    with Path(f"{file}.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
