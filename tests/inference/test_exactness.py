"""With restored blocks and without: the same tokens. On the tiny model often, on the real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from bul.blocks.prefix import Buffer
from bul.config import ServeConfig
from bul.inference.embedded import EmbeddedCore
from bul.inference.model_file import ensure_model
from bul.testing.exactness import check_exactness, prompt_pairs

pytestmark = pytest.mark.steady


class MakeCore(Protocol):
    def __call__(
        self, *, slots: int = 4, context_tokens: int = 1024, threads: int = 1
    ) -> EmbeddedCore: ...


@pytest.fixture
def real_core() -> Iterator[EmbeddedCore]:
    core = EmbeddedCore(ensure_model(print), ServeConfig(slots=2, context_tokens=512))
    yield core
    core.close()


@pytest.mark.slow
def test_300_prompt_pairs_on_the_tiny_model_are_token_exact(make_core: MakeCore) -> None:
    core = make_core(slots=2, context_tokens=512)
    result = check_exactness(core, prompt_pairs(core, seed=1, count=300))
    assert result.different == ()
    assert result.pairs == 300
    assert result.tokens_compared == 2400
    assert result.blocks_restored >= 300


def test_the_harness_fails_when_blocks_are_those_of_another_prompt(make_core: MakeCore) -> None:
    core = make_core(slots=2, context_tokens=512)
    before: list[Buffer] = []

    def swap(blocks: list[Buffer]) -> list[Buffer]:
        """The previous pair's first block instead of this one's."""
        taken = [*before, *blocks[len(before) :]]
        before[:] = blocks[:1]
        return taken

    result = check_exactness(core, prompt_pairs(core, seed=2, count=20), tamper=swap)
    assert result.different[:1] != (0,)  # nothing to swap with yet
    assert len(result.different) >= 15


def test_the_same_seed_gives_the_same_pairs(make_core: MakeCore) -> None:
    core = make_core(slots=2)
    first, second = (list(prompt_pairs(core, seed=3, count=20)) for _ in range(2))
    assert first == second
    for pair in first:
        assert pair.first[: pair.shared] == pair.second[: pair.shared]
        assert 100 <= len(pair.second) <= 250
        assert core.block_tokens <= pair.shared < len(pair.second)


@pytest.mark.slow
def test_25_prompt_pairs_on_the_real_model_are_token_exact(real_core: EmbeddedCore) -> None:
    result = check_exactness(real_core, prompt_pairs(real_core, seed=4, count=25))
    assert result.different == ()
    assert result.pairs == 25
    assert result.blocks_restored >= 25


@pytest.mark.nightly
def test_500_prompt_pairs_on_the_real_model_are_token_exact(real_core: EmbeddedCore) -> None:
    assert check_exactness(real_core, prompt_pairs(real_core, seed=5, count=500)).different == ()


@pytest.mark.nightly
def test_5000_prompt_pairs_on_the_tiny_model_are_token_exact(make_core: MakeCore) -> None:
    core = make_core(slots=2, context_tokens=512)
    assert check_exactness(core, prompt_pairs(core, seed=6, count=5000)).different == ()
