"""Cache on equals cache off, token by token, through RAM, disk, restarts and eviction.

The RAM holds 6 blocks and the disk about 60, so that blocks are evicted from both all the time, and
every so often the engine and its disk tier are closed and opened again over the same folder.
"""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bul.blocks.chain import block_keys, chain_root
from bul.blocks.prefix import Buffer
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk.tier import open_disk_tier
from bul.config import KVCacheConfig, ServeConfig
from bul.inference.batching import importable_blocks
from bul.inference.contract import ModelCore
from bul.inference.embedded import EmbeddedCore
from bul.inference.model_file import ensure_model
from bul.testing.exactness import generate_greedy
from bul.testing.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.steady

WORDS = (
    "harbour",
    "quiet",
    "boats",
    "seven",
    "rain",
    "paper",
    "maps",
    "captain",
    "winter",
    "river",
)
RAM_BLOCKS = 6
OUTPUT_TOKENS = 8


@pytest.fixture(scope="module")
def tiny_core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCore]:
    folder = tmp_path_factory.mktemp("tiny")
    model = write_tiny_gguf(folder / "tiny.gguf")
    serve = ServeConfig(slots=2, context_tokens=512, threads=1)
    core = EmbeddedCore(model, serve, digests=folder / "digests")
    yield core
    core.close()


@pytest.fixture(scope="module")
def real_core() -> Iterator[EmbeddedCore]:
    core = EmbeddedCore(ensure_model(print), ServeConfig(slots=2, context_tokens=512))
    yield core
    core.close()


@dataclasses.dataclass
class Tally:
    """What happened: blocks by where they came from, and prompts whose tokens differed."""

    prompts: int = 0
    from_ram: int = 0
    from_disk: int = 0
    computed: int = 0
    ram_evictions: int = 0
    restarts: int = 0
    different: list[int] = dataclasses.field(default_factory=list)


def conversations(core: ModelCore, seed: int) -> Iterator[list[int]]:
    """Prompts without end: most continue one of the last conversations, at most 300 tokens long."""
    source = random.Random(seed)
    open_ones: list[list[int]] = []
    while True:
        text = " ".join(source.choice(WORDS) for _ in range(source.randint(40, 150)))
        words = core.tokenize(text, special=False)
        base = source.choice(open_ones) if open_ones and source.random() < 0.75 else []
        prompt = (base[: source.randint(0, len(base))] if source.random() < 0.2 else base) + words
        prompt = prompt[: source.randint(100, 300)]
        open_ones = [*open_ones[-11:], prompt]
        yield prompt


class Tour:
    """One engine after another over one folder."""

    def __init__(self, core: ModelCore, folder: Path) -> None:
        self.core = core
        self.config = KVCacheConfig(
            block_tokens=core.block_tokens,
            max_tokens=RAM_BLOCKS * core.block_tokens,
            enable_persistence=True,
            persistence_dir=str(folder),
            disk_bytes_max=max(1 << 20, 60 * core.block_bytes),
            fsync="none",
            prefetch_size=2,
            break_even=False,  # the tiny model computes faster than any disk reads
        )
        self.tally = Tally()
        self.engine = self.open()

    def open(self) -> UltraAdaptiveKVCacheEngine:
        disk = open_disk_tier(self.config, self.core.identity)
        return UltraAdaptiveKVCacheEngine(
            self.config,
            identity=self.core.identity,
            tiers=[disk],
            block_bytes=self.core.block_bytes,
        )

    def close(self) -> None:
        stats = self.engine.stats()
        self.tally.from_disk += int(stats["disk"]["hit_tokens_total"]) // self.core.block_tokens
        ram_tokens = int(stats["ram"]["hit_tokens_total"])
        self.tally.from_ram += ram_tokens // self.core.block_tokens
        self.tally.ram_evictions += int(stats["ram"]["evictions_total"])
        assert self.engine.close()

    def restart(self) -> None:
        self.close()
        self.tally.restarts += 1
        self.engine = self.open()

    def ask(self, prompt: list[int], *, spoil: bool = False) -> None:
        """Answer with and without the cache, and compare."""
        core, tally = self.core, self.tally
        root = chain_root(core.identity.digest(), b"")
        keys = block_keys(root, prompt, core.block_tokens)
        match, ready = self.engine.match_prefix(keys), threading.Event()
        match.when_settled(ready.set)
        assert ready.wait(60)
        usable = importable_blocks(len(prompt), core.block_tokens, len(match.blocks))
        blocks: list[Buffer] = list(match.blocks[:usable])
        if spoil and blocks:
            blocks[0] = bytes(len(blocks[0]))
        warm = generate_greedy(core, 1, prompt, OUTPUT_TOKENS, blocks)
        known = len(match.blocks)
        if known < len(keys):
            self.engine.set_blocks(keys, known, core.export_blocks(1, known, len(keys)))
        tally.computed += len(keys) - known
        match.release()
        if warm != generate_greedy(core, 0, prompt, OUTPUT_TOKENS):
            tally.different.append(tally.prompts)
        tally.prompts += 1


def tour(core: ModelCore, folder: Path, prompts: int, *, restart_every: int, seed: int) -> Tally:
    trip = Tour(core, folder)
    for number, prompt in zip(range(prompts), conversations(core, seed), strict=False):
        if number and number % restart_every == 0:
            trip.restart()
        trip.ask(prompt)
    trip.close()
    return trip.tally


def assert_exact_and_varied(tally: Tally) -> None:
    assert tally.different == [], tally
    assert min(tally.from_ram, tally.from_disk, tally.computed) >= tally.prompts // 8, tally
    assert tally.ram_evictions >= tally.prompts // 4, tally
    assert tally.restarts >= 3, tally


@pytest.mark.slow
def test_500_prompts_on_the_tiny_model(tiny_core: EmbeddedCore, tmp_path: Path) -> None:
    assert_exact_and_varied(tour(tiny_core, tmp_path, 500, restart_every=60, seed=11))


def test_a_wrong_block_changes_tokens_so_the_comparison_means_something(
    tiny_core: EmbeddedCore, tmp_path: Path
) -> None:
    trip = Tour(tiny_core, tmp_path)
    for prompt in [[*range(5, 205)]] * 2:
        trip.ask(prompt, spoil=True)
    trip.close()
    assert trip.tally.different == [1]  # the first one had nothing to spoil


@pytest.mark.slow
def test_40_prompts_on_the_real_model(real_core: EmbeddedCore, tmp_path: Path) -> None:
    assert_exact_and_varied(tour(real_core, tmp_path, 40, restart_every=10, seed=12))


@pytest.mark.nightly
def test_10_000_prompts_on_the_tiny_model(tiny_core: EmbeddedCore, tmp_path: Path) -> None:
    assert_exact_and_varied(tour(tiny_core, tmp_path, 10_000, restart_every=250, seed=13))


@pytest.mark.nightly
def test_1_500_prompts_on_the_real_model(real_core: EmbeddedCore, tmp_path: Path) -> None:
    assert_exact_and_varied(tour(real_core, tmp_path, 1500, restart_every=100, seed=14))
