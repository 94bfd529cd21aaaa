"""`bul serve` with a disk tier that cannot work: one clear line before any request."""

from __future__ import annotations

from pathlib import Path

import pytest

from bul.testing.region_process import bul_process

FREE_PORT = {"BUL_SERVE_PORT": "0"}


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/bul-cache"])
async def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    arguments = ["serve", "--engine", "timed", "--enable-persistence", "--persistence-dir", folder]
    async with bul_process(arguments, tmp_path, FREE_PORT) as process:
        assert await process.ended() == 1
        assert process.errors.count("\n") == 1
        assert process.errors.startswith("bul: the disk cache cannot use ")
        assert "persistence_dir" in process.errors


async def test_the_control_with_a_good_folder_starts(tmp_path: Path) -> None:
    arguments = ["serve", "--engine", "timed", "--enable-persistence", "--log-format", "json"]
    async with bul_process(arguments, tmp_path, FREE_PORT) as process:
        assert (await process.wait_for("ready"))["engine"] == "timed"
