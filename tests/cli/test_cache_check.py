"""`bul cache check` and `bul cache stats` on a folder: damage is found, mended, and only then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bul.cli.main import main
from bul.testing.cache_folder import CacheFolder, flip_a_byte, write_cache_folder

PROMPT = "one two three four five six seven eight nine ten " * 20


@pytest.fixture
def folder(tmp_path: Path) -> CacheFolder:
    return write_cache_folder(tmp_path / "cache", PROMPT)


def run(
    capsys: pytest.CaptureFixture[str], folder: Path, command: str, *flags: str
) -> tuple[int, dict[str, Any]]:
    code = main(["cache", command, "--json", "--dir", str(folder), *flags])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, document


def test_a_sound_folder_is_clean(folder: CacheFolder, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, folder.path, "check")
    assert code == 0
    assert found["ok"] is True
    assert found["blocks"] == folder.stored == len(folder.keys)


def test_a_flipped_byte_is_found_and_removed(
    folder: CacheFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_a_byte(folder.segment)
    code, found = run(capsys, folder.path, "check")
    assert code == 1
    (problem,) = found["identities"][0]["problems"]
    assert problem.startswith(f"{folder.keys[0].hex()}: the payload is damaged")
    assert run(capsys, folder.path, "check")[0] == 1, "without --fix it is still there"
    code, found = run(capsys, folder.path, "check", "--fix")
    assert (code, found["problems"], found["problems_left"]) == (0, 1, 0)
    code, found = run(capsys, folder.path, "check")
    assert (code, found["problems"], found["blocks"]) == (0, 0, folder.stored - 1)


def test_it_says_so_to_people_too(folder: CacheFolder, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_byte(folder.segment)
    assert main(["cache", "check", "--dir", str(folder.path)]) == 1
    assert "--fix mends" in capsys.readouterr().out
    assert main(["cache", "check", "--dir", str(folder.path), "--fix"]) == 0
    out = capsys.readouterr().out
    assert " - mended" in out
    assert "1 problems, 0 left" in out


def test_a_damaged_index_is_made_again(
    folder: CacheFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    index = folder.segment.parent / "index"
    index.write_bytes(bytes(index.stat().st_size))
    code, found = run(capsys, folder.path, "check")
    assert (code, found["blocks"]) == (0, folder.stored)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"digest": "zz"}', '{"digest": "00"}'])
def test_a_damaged_identity_is_found_by_its_segments_and_written_again(
    folder: CacheFolder, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (folder.segment.parent / "identity.json").write_text(damage)
    code, found = run(capsys, folder.path, "check")
    assert (code, found["blocks"]) == (1, folder.stored)
    assert "identity.json" in found["identities"][0]["problems"][0]
    assert run(capsys, folder.path, "check", "--fix")[0] == 0
    assert run(capsys, folder.path, "check")[0] == 0


def test_what_nothing_can_name_is_left_for_a_person(
    folder: CacheFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.segment.write_bytes(b"garbage")
    (folder.segment.parent / "identity.json").write_text("{")
    code, found = run(capsys, folder.path, "check", "--fix")
    assert (code, found["problems_left"]) == (1, 1)
    assert "by hand" in found["identities"][0]["problems"][0]


def test_what_an_aborted_start_left_is_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ("ab" * 20)).mkdir()
    (tmp_path / ("ab" * 20) / "users.lock").touch()
    assert run(capsys, tmp_path, "check")[0] == 0


def test_a_foreign_file_is_named_and_left_alone(
    folder: CacheFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = folder.segment.parent / "notes.txt"
    foreign.write_text("mine")
    code, found = run(capsys, folder.path, "check", "--fix")
    assert (code, found["problems_left"]) == (1, 1)
    assert foreign.read_text() == "mine"


def test_looking_does_not_evict(folder: CacheFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder.segment.read_bytes()
    for command in ("check", "stats"):
        assert (
            run(
                capsys,
                folder.path,
                command,
            )[0]
            == 0
        )
    assert folder.segment.read_bytes() == before


def test_stats_of_a_folder(folder: CacheFolder, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, folder.path, "stats")
    (row,) = found["identities"]
    assert code == 0
    assert row["blocks"] == folder.stored
    assert row["bytes"] > folder.stored * 65536
    assert 0 <= row["newest_segment_age_s"] <= row["oldest_segment_age_s"] < 600
    assert "timed" in row["identity"]
    assert main(["cache", "stats", "--dir", str(folder.path)]) == 0
    assert "blocks" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "stats"])
def test_what_is_no_folder_is_one_line(
    folder: CacheFolder, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for path in (folder.path / "nowhere", folder.segment):
        assert main(["cache", command, "--dir", str(path)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert "--persistence-dir" in captured.err


def test_an_empty_folder_is_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, tmp_path, "check")[0] == 0
    assert run(capsys, tmp_path, "stats")[1]["identities"] == []


def test_the_default_folder_is_the_region_s(
    folder: CacheFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folder.path.parent
    (home / ".bul").mkdir()
    shutil.move(folder.path, home / ".bul" / "cache")
    monkeypatch.chdir(home)
    assert main(["cache", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == folder.stored
