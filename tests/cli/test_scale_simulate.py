"""`bul scale simulate` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import msgspec
from click.testing import CliRunner, Result

from bul.cli.main import root

ARGUMENTS = ("scale", "simulate", "--trace", "synthetic-traffic-spikes", "--days", "0.1")


def call(*more: str) -> Result:
    return CliRunner().invoke(root, [*ARGUMENTS, *more])


def test_json_has_the_promised_rows_and_terms(tmp_path: Path) -> None:
    plot = tmp_path / "out.html"
    result = call("--policy", "adaptive,guide", "--json", "--coarse", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    document = msgspec.json.decode(result.stdout)
    assert document["synthetic"] is True
    assert document["simulated"] == "coarse"
    wanted = {
        "policy", "setting", "chosen", "violation_share", "worst_5min_share", "replica_hours",
        "ups", "downs", "reversals", "seeds_spread", "hours_at",
    }  # fmt: skip
    assert all(wanted <= set(row) for row in document["rows"])
    for name in ("adaptive", "guide"):
        own = [row for row in document["rows"] if row["policy"] == name]
        assert len(own) == 6
        assert sum(row["chosen"] for row in own) == 1
        assert set(document["hours_at"][name]) == {"0.005", "0.01", "0.02", "0.05"}
    assert [error["policy"] for error in document["coarse_error"]] == ["adaptive", "guide"]
    assert plot.read_text().startswith("<!doctype html>")


def test_a_profile_may_be_a_file(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(
        "prefill_tokens_per_s = 9000.0\ndecode_base_s = 0.02\ndecode_each_s = 0.001\n"
        "slots = 16\nchunk_tokens = 1024\ncache_tokens = 1000\nmeasured = true\n"
    )
    result = call("--policy", "fixed", "--max-replicas", "3", "--profile", str(profile), "--coarse")
    assert result.exit_code == 0, result.output
    assert "fixed" in result.output


def test_bad_usage_is_said_in_one_line() -> None:
    for arguments in (
        ("--policy", "nope"),
        ("--profile", "9b"),
        ("--violation-max", "2"),
        ("--min-replicas", "5", "--max-replicas", "4"),
    ):
        result = call(*arguments)
        assert result.exit_code != 0
        assert type(result.exception).__name__ == "ConfigError"
