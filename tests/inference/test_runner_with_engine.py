"""The runner over the real cache engine, small enough to evict all the time."""

from __future__ import annotations

import asyncio
import random

import pytest

from bul.blocks.prefix import NoCache, PrefixCache
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.config import KVCacheConfig, ServeConfig, TimedConfig
from bul.testing.cores import RecordingCore
from bul.testing.prefix_cache import DictPrefixCache
from bul.testing.replies import Reply, reply

from .conftest import StartRunner

SERVE = ServeConfig(slots=4, context_tokens=1024)
INSTANT = TimedConfig(time_scale=0.0, block_bytes=4096)


def conversations(count: int, seed: int) -> list[list[int]]:
    """Prompts that grow from each other's prefixes."""
    chance = random.Random(seed)
    prompts = [[chance.randrange(1 << 31) for _ in range(300)]]
    for _ in range(count - 1):
        parent = chance.choice(prompts)
        fresh = [chance.randrange(1 << 31) for _ in range(chance.randint(1, 200))]
        prompts.append((parent[: chance.randint(0, len(parent))] + fresh)[:900])
    # A prompt of whole blocks computes its last one again; who came first would then count.
    return [tokens if len(tokens) % 64 else tokens[:-1] for tokens in prompts]


async def answers(
    start: StartRunner, cache: PrefixCache, core: RecordingCore, prompts: list[list[int]]
) -> list[Reply]:
    runner = start(core, cache)
    replies = list(await asyncio.gather(*(reply(runner, tokens) for tokens in prompts)))
    assert runner.stats()["cache_errors_total"] == 0
    return replies


@pytest.mark.parametrize("max_tokens", [64, 20 * 64, 1 << 20])
async def test_texts_are_equal_with_the_engine_at_any_size(
    start: StartRunner, max_tokens: int
) -> None:
    prompts = conversations(150, seed=max_tokens)
    settings = KVCacheConfig(max_tokens=max_tokens, eviction="lru", break_even=False)
    engine = UltraAdaptiveKVCacheEngine(settings)
    core = RecordingCore(SERVE, INSTANT)
    cached = await answers(start, engine, core, prompts)
    plain = await answers(start, NoCache(), RecordingCore(SERVE, INSTANT), prompts)
    assert [answer.text for answer in cached] == [answer.text for answer in plain]
    assert core.wrong_blocks == 0
    assert sum(answer.cached_tokens for answer in cached) > 2000
    engine.close()


async def test_the_engine_saves_as_much_as_the_reference_when_all_fits(
    start: StartRunner,
) -> None:
    prompts = conversations(150, seed=9)
    engine = UltraAdaptiveKVCacheEngine(KVCacheConfig(eviction="lru", break_even=False))
    computed = []
    for cache in (engine, DictPrefixCache()):
        core = RecordingCore(SERVE, INSTANT)
        await answers(start, cache, core, prompts)
        computed.append(core.prefilled_tokens)
    assert computed[0] == computed[1] < 0.8 * sum(map(len, prompts))
    engine.close()


async def test_two_hundred_identical_cold_prompts_compute_each_block_once(
    start: StartRunner,
) -> None:
    engine = UltraAdaptiveKVCacheEngine(KVCacheConfig(eviction="lru", break_even=False))
    core = RecordingCore(SERVE, INSTANT)
    await answers(start, engine, core, [conversations(1, seed=1)[0]] * 200)
    assert core.prefilled_tokens == 300 + 199 * (300 - 256)
    engine.close()
