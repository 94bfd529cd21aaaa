"""`bul cache explain`: against a folder that a replica's engine wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bul.blocks.chain import block_keys, chain_root
from bul.cli.cache_engine import open_cache_engine
from bul.cli.main import main
from bul.config import KVCacheConfig, ServeConfig, Settings, TimedConfig
from bul.inference.timed import TimedCore
from bul.service.auth import tenant_salt

PROMPT = "one two three four five six seven eight nine ten " * 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all full blocks of PROMPT but the last one."""
    core = TimedCore(ServeConfig(engine="timed"), TimedConfig())
    cache = KVCacheConfig(enable_persistence=True, persistence_dir=str(tmp_path))
    engine = open_cache_engine(Settings(cache=cache), core)
    root = chain_root(core.identity.digest(), tenant_salt("", ""))
    keys = block_keys(root, core.tokenize(PROMPT, special=False), core.block_tokens)
    engine.set_blocks(keys[:-1], 0, [bytes(core.block_bytes)] * (len(keys) - 1))
    assert engine.close()
    core.close()
    return tmp_path


def explain(folder: Path, *words: str) -> int:
    flags = ["--engine", "timed", "--persistence-dir", str(folder)]
    return main(["cache", "explain", *flags, *words])


def test_the_block_that_is_missing_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(folder, "--json", PROMPT) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cached"] == document["blocks"] - 1 == document["broken_at"]
    assert "is in no tier: the chain ends there" in document["reasons"][0]


def test_a_prompt_that_was_never_seen_is_exit_code_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(folder, "another text " * 50) == 1
    assert "never stored, or evicted" in capsys.readouterr().out


def test_another_tenant_has_other_keys(folder: Path) -> None:
    assert explain(folder, "--tenant", "somebody", PROMPT) == 1


def test_the_field_of_the_identity_that_differs_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUL_TIMED_BLOCK_BYTES", "4096")
    assert explain(folder, PROMPT) == 1
    out = capsys.readouterr().out
    assert "under another identity" in out
    assert "layout is" in out


def test_no_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(tmp_path / "nowhere", PROMPT) != 0
    assert "--persistence-dir" in capsys.readouterr().err
