"""What a region cost and what its scaler decided, as commands read them from the database."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bul.accounts import records, store
from bul.accounts.book import DAY_S, DecisionRow, Records, Watched
from bul.accounts.database import open_database, sqlite_url
from bul.accounts.usage import Spent
from bul.cli.main import root
from bul.doctor.evidence import Looked, cost_of_a_day
from bul.errors import ConfigError

DAY = 20_000 * DAY_S
SPENT = Spent(requests=2, prompt_tokens=1_500_000, cached_tokens=1_000_000, output_tokens=500_000)


def bul(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments))


def decision(direction: str, alert: str = "") -> DecisionRow:
    return DecisionRow(
        at_s=DAY + 60.0,
        policy="adaptive",
        direction=direction,
        replicas_before=1,
        replicas=2 if direction == "up" else 1,
        reason="the line is long",
        acted=direction == "up",
        alert=alert,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder without a log, whose ledger has two replicas of an hour."""
    engine = open_database(sqlite_url(tmp_path / "accounts.db"))
    hours = {DAY: Watched(replica_seconds=7200.0, seconds=3600.0)}
    said = [decision("up"), decision("hold"), decision("hold", "no number helps")]
    records.add_records(engine, "here", "w1", 1, Records(decisions=said, hours=hours), 0.0)
    store.add_usage(engine, "w2", 1, {(DAY, "alice", "m"): SPENT}, 0.0, region="here")
    engine.dispose()
    return tmp_path


def test_costs_are_told_by_day_and_region(folder: Path) -> None:
    asked = ("usage", "--costs", "--state-dir", str(folder))
    outcome = bul(*asked, "--price-per-replica-hour", "3", "--json")
    [row] = json.loads(outcome.stdout)["days"]
    assert (row["day"], row["region"], row["replica_hours"]) == ("2024-10-04", "here", 2.0)
    assert (row["cost"], row["cost_per_million_tokens"]) == (6.0, 3.0)
    assert (row["computed_tokens"], row["cached_tokens"]) == (500_000, 1_000_000)
    without = bul(*asked)
    assert "no price is set" in without.stderr
    assert "2024-10-04" in without.stdout
    assert isinstance(bul(*asked, "--key", "alice").exception, ConfigError)


def test_history_comes_from_the_database_where_there_is_no_log(folder: Path) -> None:
    asked = ("scale", "history", "--state-dir", str(folder), "--json")
    found = json.loads(bul(*asked).stdout)["decisions"]
    assert [(one["direction"], one["region"]) for one in found] == [
        ("up", "here"),
        ("hold", "here"),
    ]
    assert found[0]["text"] == "up   1 -> 2: the line is long"
    assert len(json.loads(bul(*asked, "--all").stdout)["decisions"]) == 3
    (folder / "decisions.jsonl").write_text("", encoding="utf-8")
    assert bul(*asked).exit_code == 1
    assert bul(*asked, "--database").exit_code == 0
    assert bul(*asked, "--region", "elsewhere").exit_code == 1


def test_a_days_cost_is_the_ledgers_or_else_that_of_the_replicas_now() -> None:
    looked = Looked(url="", key="", salt="", price_per_replica_hour=2.0, hours_basis="no ledger")
    assert cost_of_a_day(looked, 3) == (144.0, "3 replicas now x 24 h, no ledger")
    known = Looked(
        url="",
        key="",
        salt="",
        price_per_replica_hour=2.0,
        replica_hours_per_day=30.0,
        hours_basis="by the ledger",
    )
    assert cost_of_a_day(known, 3) == (60.0, "by the ledger")
    assert cost_of_a_day(Looked(url="", key="", salt=""), 3) == (None, "")


def test_the_checklist_reckons_with_what_the_ledger_has(tmp_path: Path) -> None:
    """No region answers here: only the costs can be judged."""
    now_s = time.time()
    hour_s = int(now_s) // 3600 * 3600
    hours = {
        hour_s - 3600: Watched(replica_seconds=7200.0, seconds=3600.0),
        hour_s: Watched(replica_seconds=2 * (now_s - hour_s), seconds=now_s - hour_s),
    }
    engine = open_database(sqlite_url(tmp_path / "accounts.db"))
    records.add_records(engine, "default", "w1", 1, Records(decisions=(), hours=hours), 0.0)
    engine.dispose()
    asked = ("check", "post", "--url", "http://127.0.0.1:9", "--state-dir", str(tmp_path))
    money = ("--price-per-replica-hour", "2", "--budget-per-day", "100", "--json")
    items = json.loads(bul(*asked, *money).stdout)["items"]
    [costs] = [item for item in items if item["id"] == "costs"]
    assert costs["verdict"] == "pass"
    assert costs["evidence"].endswith("by the ledger")
    # Two replicas, give or take what went by since `now_s`.
    assert costs["evidence"].startswith(("96.", "95."))
