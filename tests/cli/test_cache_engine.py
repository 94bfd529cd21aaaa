"""The wiring of the cache engine: persistence on means a disk tier in the right folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bul.blocks.chain import block_keys, chain_root
from bul.cli.cache_engine import open_cache_engine
from bul.config import KVCacheConfig, ServeConfig, Settings, TimedConfig, UpConfig
from bul.errors import ConfigError, TierUnavailable
from bul.inference.embedded import EmbeddedCore
from bul.inference.timed import TimedCore
from bul.testing.engines import settled
from bul.testing.tiny_gguf import write_tiny_gguf


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


def test_quantised_kv_needs_f16(core: TimedCore) -> None:
    settings = Settings(cache=KVCacheConfig(quantisation="int8"))
    with pytest.raises(ConfigError, match="needs f16 KV"):
        open_cache_engine(settings, core)


def test_quantised_kv_has_keys_of_its_own(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    serve = ServeConfig(slots=1, context_tokens=256, threads=1)
    core = EmbeddedCore(model, serve, digests=tmp_path / "digests")
    before = core.identity.digest()
    cache = KVCacheConfig(
        quantisation="int8", enable_persistence=True, persistence_dir=str(tmp_path / "kv")
    )
    engine = open_cache_engine(Settings(cache=cache), core)
    assert core.identity.quantisation == "int8"
    assert core.identity.digest() != before
    core.prefill(0, range(5, 69), 0)
    [block] = core.export_blocks(0, 0, 1)
    keys = block_keys(chain_root(core.identity.digest(), b""), range(5, 69), 64)
    engine.set_blocks(keys, 0, [block])
    assert engine.flush()
    engine.clear_ram()
    match = settled(engine.match_prefix(keys))
    exact, loaded = (
        np.frombuffer(data, np.float16).astype(float) for data in (block, match.blocks[0])
    )
    match.release()
    assert 0 < np.sqrt(np.mean((exact - loaded) ** 2) / np.mean(exact**2)) < 0.02
    assert engine.close()
    core.close()
