"""The real model under kill -9, three times: nothing wrong, nothing acknowledged is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from bul.cache.tiers.disk import DiskTier
from bul.config import ServeConfig
from bul.inference.embedded import EmbeddedCore
from bul.inference.model_file import ensure_model
from bul.testing.disk_crash import NaiveStore
from bul.testing.disk_kills import KilledReplica, computed_blocks, prompt, wrong_and_lost

pytestmark = pytest.mark.steady

KILLS = 3
GIB = 1 << 30


@pytest.mark.slow
async def test_three_kills_of_the_real_model_while_it_reads_and_writes(tmp_path: Path) -> None:
    """RAM keeps two blocks, so that every prompt that is read again comes from the disk."""
    replica = KilledReplica(tmp_path, "--max-tokens", "128", "--context-tokens", "1024")
    for life in range(KILLS):
        await replica.live(prompt(2 * life), prompt(2 * life + 1), kill_after_s=0.4 + 0.6 * life)
    await replica.live(prompt(2 * KILLS), None)
    assert len(replica.acknowledged) == KILLS + 1
    assert replica.from_disk_tokens >= 6 * 192  # 1 + 2 + 3 prompts after the kills
    assert {text: len(texts) for text, texts in replica.texts.items()} == dict.fromkeys(
        map(prompt, range(2 * KILLS + 1)), 1
    )
    core = EmbeddedCore(ensure_model(print), ServeConfig(slots=1, context_tokens=1024))
    store = DiskTier(tmp_path / ".bul" / "cache", core.identity, bytes_max=GIB)
    for number in range(2 * KILLS + 1):
        wrong, lost = wrong_and_lost(store, computed_blocks(core, prompt(number)))
        assert wrong == 0
        assert lost == 0 or prompt(number) not in replica.acknowledged
    assert store.check().problems == ()
    store.close()
    core.close()


def test_the_judge_sees_a_torn_and_a_missing_block(tmp_path: Path) -> None:
    """The control: what a plain write leaves when it is killed halfway."""
    blocks = {bytes([number]) * 32: bytes([number]) * 4096 for number in range(4)}
    store = NaiveStore(tmp_path)
    for key, block in list(blocks.items())[:3]:
        (tmp_path / key.hex()).write_bytes(block if key[0] else block[:2000])
    assert wrong_and_lost(store, blocks) == (1, 1)
