"""Persistence of `bul up`: on by default, bounded, and never a reason not to start."""

from __future__ import annotations

from pathlib import Path

import pytest

from bul.cli.persistence import default_budget, persistence
from bul.config import Settings, load_settings
from bul.errors import TierUnavailable

MIB = 1 << 20
GIB = 1 << 30


def settings(**flags: object) -> Settings:
    told = {f"cache.{name}": (f"--{name}", value) for name, value in flags.items()}
    return load_settings(environ={}, flags=told)


@pytest.mark.parametrize(
    ("free", "used", "budget"),
    [
        (1000 * GIB, 0, 4 * GIB),
        (40 * GIB, 0, 4 * GIB),
        (20 * GIB, 0, 2 * GIB),
        (18 * GIB, 2 * GIB, 2 * GIB),
        (640 * MIB, 0, 64 * MIB),
        (640 * MIB - 10, 0, None),
        (0, 0, None),
    ],
)
def test_the_budget_is_a_tenth_of_what_could_be_free_up_to_four_gib(
    free: int, used: int, budget: int | None
) -> None:
    assert default_budget(free, used) == budget


def test_it_is_on_by_default_in_the_state_folder(tmp_path: Path) -> None:
    kept = persistence(settings(), tmp_path)
    assert kept.problem == ""
    assert kept.changes["cache.enable_persistence"] is True
    assert kept.changes["cache.persistence_dir"] == str(tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_what_was_told_stays(tmp_path: Path) -> None:
    told = settings(persistence_dir=str(tmp_path / "there"), disk_bytes_max=5 * MIB)
    changes = persistence(told, tmp_path).changes
    assert changes["cache.persistence_dir"] == str(tmp_path / "there")
    assert changes["cache.disk_bytes_max"] == 5 * MIB


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    assert persistence(settings(enable_persistence=False), tmp_path).changes == {}
    assert list(tmp_path.iterdir()) == []


def a_file_in_its_place(folder: Path) -> Path:
    (folder / "cache").write_text("a file")
    return folder / "cache"


@pytest.mark.parametrize("broken", [a_file_in_its_place, lambda _: Path("/proc/bul-cache")])
def test_a_folder_that_cannot_be_used_is_one_line_with_what_to_do(
    tmp_path: Path, broken: type[Path]
) -> None:
    folder = str(broken(tmp_path))
    kept = persistence(settings(persistence_dir=folder), tmp_path)
    assert kept.changes == {}
    assert folder in kept.problem
    assert "--no-persistence" in kept.problem
    assert "\n" not in kept.problem
    with pytest.raises(TierUnavailable, match="--persistence-dir"):
        persistence(settings(persistence_dir=folder, enable_persistence=True), tmp_path)
