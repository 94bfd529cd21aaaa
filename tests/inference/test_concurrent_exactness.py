"""Eight sequences at once on the real engine: the blocks stay those of a sequential run.

Texts are another matter: a decode call of eight sequences may round otherwise than a call of one,
with or without a cache. How often that shows is measured with the cache off, and printed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bul.blocks.prefix import NoCache, PrefixCache
from bul.config import ServeConfig
from bul.inference.contract import Sampling
from bul.inference.embedded import EmbeddedCore
from bul.testing.prefix_cache import DictPrefixCache
from bul.testing.replies import Reply, reply
from bul.testing.tiny_gguf import write_tiny_gguf

from .conftest import StartRunner

pytestmark = [pytest.mark.slow, pytest.mark.steady]

SERVE = ServeConfig(slots=8, context_tokens=512, threads=1)
SAMPLING = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


def prompts_of(count: int, seed: int) -> list[list[int]]:
    """Random prompts of 100 to 400 tokens; half of them begin like one before."""
    chance = random.Random(seed)
    prompts: list[list[int]] = []
    for _ in range(count):
        shared: list[int] = []
        if prompts and chance.random() < 0.5:
            parent = chance.choice(prompts)
            shared = parent[: chance.randint(64, len(parent))][:300]
        fresh = [chance.randrange(3, 260) for _ in range(chance.randint(36, 100))]
        prompts.append(shared + fresh if len(shared) > 64 else fresh * 3)
    return prompts


async def one_by_one(
    start: StartRunner, model: Path, cache: PrefixCache, prompts: Sequence[list[int]]
) -> list[Reply]:
    runner = start(EmbeddedCore(model, SERVE), cache)
    return [await reply(runner, tokens, SAMPLING) for tokens in prompts]


async def all_at_once(
    start: StartRunner, model: Path, cache: PrefixCache, prompts: Sequence[list[int]]
) -> list[Reply]:
    runner = start(EmbeddedCore(model, SERVE), cache)
    return list(await asyncio.gather(*(reply(runner, tokens, SAMPLING) for tokens in prompts)))


def equal_share(some: Sequence[Reply], others: Sequence[Reply]) -> float:
    equal = sum(one.text == other.text for one, other in zip(some, others, strict=True))
    return equal / len(some)


async def test_blocks_stored_by_eight_sequences_at_once_equal_those_of_a_sequential_run(
    start: StartRunner, model: Path, record_property: Callable[[str, object], None]
) -> None:
    prompts = prompts_of(64, seed=3)
    alone, together, warm = DictPrefixCache(), DictPrefixCache(), DictPrefixCache()
    in_order = await one_by_one(start, model, alone, prompts)
    at_once = await all_at_once(start, model, together, prompts)
    warm.stored.update(alone.stored)
    loaded = await all_at_once(start, model, warm, prompts)
    assert alone.stored.keys() == together.stored.keys()
    differing = [
        key for key in alone.stored if bytes(alone.stored[key]) != bytes(together.stored[key])
    ]
    assert differing == []
    assert set(together.computed.values()) == {1}
    assert not warm.computed

    plain_in_order = await one_by_one(start, model, NoCache(), prompts)
    plain_at_once = await all_at_once(start, model, NoCache(), prompts)
    shares = {
        "sequential_cache_on_vs_off": equal_share(in_order, plain_in_order),
        "batching_alone_cache_off": equal_share(plain_at_once, plain_in_order),
        "concurrent_cold_cache_vs_off": equal_share(at_once, plain_at_once),
        "concurrent_warm_cache_vs_off": equal_share(loaded, plain_at_once),
    }
    for name, share in shares.items():
        record_property(name, share)
        print(f"equal texts, {name}: {share:.3f} of {len(prompts)}")  # noqa: T201 - for -s
    assert shares["sequential_cache_on_vs_off"] == 1.0
    assert sum(answer.cached_tokens for answer in loaded) > 64 * len(prompts)


async def test_control_another_first_token_gives_other_blocks(
    start: StartRunner, model: Path
) -> None:
    prompt = prompts_of(1, seed=4)[0]
    cache, other = DictPrefixCache(), DictPrefixCache()
    await one_by_one(start, model, cache, [prompt])
    await one_by_one(start, model, other, [[prompt[0] + 1, *prompt[1:]]])
    blocks = zip(cache.stored.values(), other.stored.values(), strict=True)
    assert all(bytes(one) != bytes(another) for one, another in blocks)
