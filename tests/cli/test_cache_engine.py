"""The wiring of the cache engine: persistence on means a disk tier in the right folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from bul.cli.cache_engine import open_cache_engine
from bul.config import KVCacheConfig, ServeConfig, Settings, TimedConfig, UpConfig
from bul.errors import TierUnavailable
from bul.inference.timed import TimedCore


@pytest.fixture
def core() -> Iterator[TimedCore]:
    core = TimedCore(ServeConfig(engine="timed"), TimedConfig())
    yield core
    core.close()


def test_without_persistence_there_is_only_ram(core: TimedCore) -> None:
    engine = open_cache_engine(Settings(), core)
    assert set(engine.stats()) == {"engine", "ram", "values"}
    engine.close()


def test_the_disk_tier_lies_in_the_state_folder_by_default(core: TimedCore, tmp_path: Path) -> None:
    settings = Settings(
        cache=KVCacheConfig(enable_persistence=True), up=UpConfig(state_dir=str(tmp_path))
    )
    engine = open_cache_engine(settings, core)
    assert "disk" in engine.stats()
    assert engine.close()
    assert (tmp_path / "cache").is_dir()


def test_a_folder_that_cannot_be_used_is_one_clear_error(core: TimedCore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = KVCacheConfig(enable_persistence=True, persistence_dir=str(tmp_path / "file"))
    with pytest.raises(TierUnavailable, match="file"):
        open_cache_engine(dataclasses.replace(Settings(), cache=cache), core)
