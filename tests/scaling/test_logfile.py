"""The log of a replica never fills the disk and never fails its writer."""

from __future__ import annotations

from pathlib import Path

from bul.scaling.drivers.logfile import BoundedLog


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_log_stays_within_its_budget_and_keeps_the_newest_lines(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", bytes_max=1000)
    for number in range(200):
        log.write(f"line {number}\n".encode())
        assert size(tmp_path) <= 1000
    assert log.tail(1) == ["line 199"]
    log.close()


def test_one_huge_write_is_cut_to_its_newest_part(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", bytes_max=1000)
    log.write(b"x" * 5000 + b"end")
    assert size(tmp_path) == 500
    assert log.tail(1)[0].endswith("end")
    log.close()


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    for word in ("first", "second"):
        log = BoundedLog(tmp_path / "a.log")
        log.write(word.encode() + b"\n")
        log.close()
    assert BoundedLog(tmp_path / "a.log").tail(9) == ["first", "second"]


def test_a_place_that_cannot_be_written_drops_lines_and_counts_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    log = BoundedLog(tmp_path / "file" / "a.log")
    log.write(b"lost\n")
    assert log.dropped == 1
    assert log.tail(1) == []


def test_a_fresh_log_has_no_tail(tmp_path: Path) -> None:
    assert BoundedLog(tmp_path / "a.log").tail(3) == []
