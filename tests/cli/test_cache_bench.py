"""`bul cache bench`: it measures, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bul.cli.main import main


def test_it_measures_both_tiers_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--blocks", "20", "--block-bytes", "4096", "--dir", str(tmp_path / "cache")]
    assert main(["cache", "bench", "--json", *small]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["what"]: row for row in document["rows"]}
    assert rows["disk set"]["calls"] == 2
    assert rows["disk get, from the device"]["gb_per_s"] > 0
    assert {"RAM set of a block", "RAM match of 20 blocks"} <= set(rows)
    assert all(row["p50_us"] <= row["p99_us"] for row in document["rows"])
    assert list(tmp_path.iterdir()) == []
    assert main(["cache", "bench", *small]) == 0
    assert "GB/s" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_to_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["cache", "bench", "--blocks", "1", "--dir", "/proc/bul/cache"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
