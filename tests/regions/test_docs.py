"""docs/reference/regions.md names every message, figure and file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bul.config import RegionsConfig
from bul.regions.agent import RegionAgent
from bul.testing.region_agents import SECRET, MemoryStore

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "reference" / "regions.md").read_text()


async def test_every_figure_is_named() -> None:
    peers = ("eu-west=http://127.0.0.1:1",)
    agent = RegionAgent(
        RegionsConfig(name="us-east", peers=peers, peer_secret=SECRET), MemoryStore()
    )
    status = agent.status()
    names = {*status, *status["peers"]["eu-west"]} - {"region", "peers"}
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []
    text = agent.metrics().decode()
    assert 'bul_regions_peer_lag_p99_ms{peer="eu-west"} 0.0' in text
    assert "bul_regions_entries 0.0" in text


@pytest.mark.parametrize("word", ["offer", "blocks", "compare", "list", "get", "hot", "ping"])
def test_every_message_is_named(word: str) -> None:
    assert f"`/peer/{word}`" in PAGE


def test_settings_that_are_mentioned_exist() -> None:
    fields = {field.name for field in dataclasses.fields(RegionsConfig)}
    for name in ("queue_keys_max", "graves_max", "horizon_s", "entries_max", "warm_blocks"):
        assert name in fields
        assert f"`{name}`" in PAGE
