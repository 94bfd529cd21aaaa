"""The tables in SQLite and in a real PostgreSQL: the same questions, the same answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from bul import accounts
from bul.accounts import records, store
from bul.accounts.book import DecisionRow, Records, RegionBook, Watched
from bul.accounts.database import open_database, sqlite_url
from bul.accounts.keeper import AccountsKeeper
from bul.accounts.keys import Key, hash_key
from bul.accounts.ledger import Ledger
from bul.accounts.ring import KeyRing
from bul.accounts.schema import metadata
from bul.accounts.usage import Spent
from bul.clock import SystemClock
from bul.errors import AccountsUnavailable, ConfigError
from bul.testing.postgres import Postgres
from bul.testing.waiting import eventually

ONE = Spent(requests=1, prompt_tokens=10, cached_tokens=4, output_tokens=2)
BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        found = open_database(sqlite_url(tmp_path / "accounts.db"))
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        found = open_database(postgres.url)
    yield found
    with found.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(table.delete())
    found.dispose()


def key(name: str, secret: str = "secret") -> Key:
    return Key(name=name, digest=hash_key(name + secret), created_s=1.0)


def test_the_newest_migration_leaves_just_our_tables(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


def test_a_key_is_valid_from_its_creation_to_its_end(engine: sa.Engine) -> None:
    assert not store.has_keys(engine)
    store.create_key(engine, key("alice"))
    assert store.valid_digests(engine) == {"alice": key("alice").digest}
    with pytest.raises(ConfigError, match="already"):
        store.create_key(engine, key("alice", "other"))
    assert store.revoke_key(engine, "alice", 2.0)
    assert not store.revoke_key(engine, "alice", 3.0)
    assert store.valid_digests(engine) == {}
    assert store.has_keys(engine)
    assert [(k.name, k.revoked_s) for k in store.list_keys(engine)] == [("alice", 2.0)]
    store.create_key(engine, key("alice", "other"))
    assert store.valid_digests(engine) == {"alice": key("alice", "other").digest}


def test_batches_add_up_and_a_repeated_one_does_not(engine: sa.Engine) -> None:
    sums = {(0, "alice", "m"): ONE, (3600, "alice", "m"): ONE, (3600, "bob", "m"): ONE}
    assert store.add_usage(engine, "w1", 1, sums, 1.0)
    assert not store.add_usage(engine, "w1", 1, sums, 2.0)
    assert store.add_usage(engine, "w1", 2, {(3600, "alice", "m"): ONE}, 3.0)
    assert store.add_usage(engine, "w2", 1, {(3600, "alice", "n"): ONE}, 3.0)
    found = {(r.name, r.model): r.requests for r in store.read_usage(engine)}
    assert found == {("alice", "m"): 3, ("alice", "n"): 1, ("bob", "m"): 1}
    later = store.read_usage(engine, since_s=3600.0, until_s=7200.0, name="alice")
    assert [(r.model, r.prompt_tokens) for r in later] == [("m", 20), ("n", 10)]
    assert store.read_usage(engine, until_s=0.0) == []


def test_a_batch_is_written_whole_or_not_at_all(engine: sa.Engine) -> None:
    bad = {(0, "alice", "m"): ONE, (0, "bob", "m"): Spent(requests=1 << 80)}
    with pytest.raises((sa.exc.SQLAlchemyError, OverflowError)):
        store.add_usage(engine, "w1", 1, bad, 1.0)
    assert store.read_usage(engine) == []
    assert store.add_usage(engine, "w1", 1, {(0, "alice", "m"): ONE}, 1.0)


def decision(at_s: float, **changes: object) -> DecisionRow:
    given = {
        "at_s": at_s,
        "policy": "adaptive",
        "direction": "up",
        "replicas_before": 1,
        "replicas": 2,
        "reason": "more work than 1 replica does",
        "acted": True,
    }
    return DecisionRow(**(given | changes))  # type: ignore[arg-type]  # fields by name


def test_a_regions_records_are_written_once_and_whole(engine: sa.Engine) -> None:
    hour = Watched(replica_seconds=30.0, seconds=15.0)
    batch = Records(decisions=[decision(1.0), decision(2.0)], hours={0: hour, 3600: hour})
    assert records.add_records(engine, "here", "w1", 1, batch, 1.0)
    assert not records.add_records(engine, "here", "w1", 1, batch, 1.0)
    more = Records(decisions=(), hours={3600: hour})
    assert records.add_records(engine, "here", "w1", 2, more, 2.0)
    assert records.add_records(engine, "there", "w2", 1, batch, 2.0)
    newest = records.read_decisions(engine, limit=1, region="here")
    assert newest == [("here", decision(2.0))]
    assert len(records.read_decisions(engine)) == 4
    found = records.read_replica_hours(engine, since_s=3600.0, region="here")
    assert [(h.replica_seconds, h.seconds) for h in found] == [(60.0, 30.0)]
    assert len(records.read_replica_hours(engine)) == 4
    assert records.trim(engine, "here", 3600.0) == 3
    assert len(records.read_decisions(engine)) == 2
    assert [h.hour_s for h in records.read_replica_hours(engine, region="here")] == [3600]


def test_usage_is_told_apart_by_region_and_summed_by_day(engine: sa.Engine) -> None:
    store.add_usage(engine, "w1", 1, {(0, "alice", "m"): ONE, (3600, "bob", "m"): ONE}, 1.0)
    store.add_usage(engine, "w2", 1, {(0, "alice", "m"): ONE}, 1.0, region="there")
    store.add_usage(engine, "w2", 2, {(86_400, "alice", "m"): ONE}, 1.0, region="there")
    days = {(d.day_s, d.region): d.spent.requests for d in store.read_usage_days(engine)}
    assert days == {(0, "default"): 2, (0, "there"): 1, (86_400, "there"): 1}
    assert {r.name: r.requests for r in store.read_usage(engine)} == {"alice": 3, "bob": 1}


def test_tables_of_the_first_version_are_brought_up_with_what_is_in_them(
    engine: sa.Engine,
) -> None:
    """And back down, where regions are added up."""
    store.add_usage(engine, "w1", 1, {(0, "alice", "m"): ONE}, 1.0)
    store.add_usage(engine, "w1", 2, {(0, "alice", "m"): ONE}, 1.0, region="there")
    for version in ("0001", "0002"):
        with engine.begin() as connection:
            config = Config()
            folder = Path(accounts.__file__).with_name("migrations")
            config.set_main_option("script_location", str(folder))
            config.attributes["connection"] = connection
            go = command.downgrade if version == "0001" else command.upgrade
            go(config, version)
    days = {(d.day_s, d.region): d.spent.requests for d in store.read_usage_days(engine)}
    assert days == {(0, "default"): 2}
    assert store.add_usage(engine, "w1", 3, {(0, "alice", "m"): ONE}, 1.0)


def test_several_processes_may_start_at_once(tmp_path: Path) -> None:
    url, failed = sqlite_url(tmp_path / "accounts.db"), []

    def start() -> None:
        try:
            open_database(url).dispose()
        except (ConfigError, AccountsUnavailable) as error:
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize(
    ("url", "said"),
    [("nonsense", "no database URL"), ("mysql://u:hidden@h/d", "mysql is not known")],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_database(url)
    assert "hidden" not in str(caught.value)


@pytest.mark.slow
def test_a_database_that_is_away_is_said_without_its_password() -> None:
    with pytest.raises(AccountsUnavailable, match="cannot be used") as caught:
        open_database("postgresql://u:hidden@127.0.0.1:9/d")
    assert "hidden" not in str(caught.value)


@pytest.mark.slow
async def test_usage_and_records_outlive_a_stop_of_postgresql(postgres: Postgres) -> None:
    """And the keys that were valid before stay so while it is away."""
    engine = open_database(postgres.url)
    store.create_key(engine, key("alice"))
    ring, ledger = KeyRing({}, has_database=True), Ledger()
    book = RegionBook("here")
    keeper = AccountsKeeper(
        postgres.url,
        ring,
        ledger,
        clock=SystemClock(),
        interval_s=0.05,
        book=book,
        book_interval_s=0.0,
    )
    try:
        assert keeper.wait_loaded(20.0)
        ledger.record(0.0, "alice", "m", ONE)
        await eventually("written", lambda: ledger.stats()["usage_unwritten"] == 0)
        postgres.stop()
        for _ in range(100):
            ledger.record(0.0, "alice", "m", ONE)
        book.see(0.0, 7200.0, 2)
        for at_s in (10.0, 20.0, 30.0):
            book.see(at_s, 7200.0 + at_s, 2)
            book.decide(decision(at_s))
        await eventually("it is away", lambda: keeper.stats()["database_away"] == 1)
        assert dict(ring) == {"alice": key("alice").digest}
        assert ledger.stats()["usage_unwritten"] == 100
        postgres.start()
        await eventually("caught up", lambda: ledger.stats()["usage_unwritten"] == 0)
        assert sum(row.requests for row in store.read_usage(engine)) == 101
        left = "region_replica_seconds_unwritten"
        await eventually("the book as well", lambda: book.stats()[left] == 0)
        assert [row.at_s for _, row in records.read_decisions(engine)] == [30.0, 20.0, 10.0]
        [hour] = records.read_replica_hours(engine)
        assert (hour.hour_s, hour.replica_seconds, hour.seconds) == (7200, 60.0, 30.0)
    finally:
        assert keeper.close() == 0
        with engine.begin() as connection:
            for table in metadata.sorted_tables:
                connection.execute(table.delete())
        engine.dispose()


@pytest.mark.slow
async def test_what_is_lost_at_the_end_is_counted(postgres: Postgres) -> None:
    ring, ledger = KeyRing({}, has_database=True), Ledger()
    url = postgres.url.replace("127.0.0.1:", "127.0.0.1:1")  # nobody there
    keeper = AccountsKeeper(
        url.rpartition(":")[0] + ":9/postgres", ring, ledger, clock=SystemClock(), interval_s=0.05
    )
    ledger.record(0.0, "alice", "m", ONE)
    assert keeper.close() == 1
