"""Two hundred identical cold prompts at once, through the runner: each full block once."""

from __future__ import annotations

import asyncio

from bul.blocks.prefix import NoCache, PrefixCache
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.config import KVCacheConfig, ServeConfig, TimedConfig
from bul.inference.contract import GenerateRequest, Sampling
from bul.inference.runner import BatchingRunner
from bul.inference.timed import TimedCore

REQUESTS = 200
BLOCKS = 10
PROMPT = [*range(5, 5 + BLOCKS * 64 + 30)]


async def prefilled_tokens(cache: PrefixCache) -> int:
    """What REQUESTS identical prompts made the core compute."""
    core = TimedCore(ServeConfig(engine="timed"), TimedConfig(time_scale=0.0, block_bytes=1024))
    runner = BatchingRunner(core, cache, waiting_max=REQUESTS, request_deadline_s=60.0)

    async def ask(number: int) -> int:
        request = GenerateRequest(
            request_id=str(number), tokens=PROMPT, sampling=Sampling(max_tokens=2)
        )
        return [delta.cached_tokens async for delta in runner.generate(request)][-1]

    cached = sum(await asyncio.gather(*(ask(number) for number in range(REQUESTS))))
    await runner.close(1.0)
    core.close()
    return REQUESTS * len(PROMPT) - cached


async def test_each_full_block_is_computed_once() -> None:
    engine = UltraAdaptiveKVCacheEngine(KVCacheConfig())
    tokens = await prefilled_tokens(engine)
    tails = REQUESTS * (len(PROMPT) - BLOCKS * 64)
    assert tokens - tails <= 1.05 * BLOCKS * 64
    assert engine.stats()["engine"]["set_blocks_total"] == BLOCKS
    assert engine.stats()["engine"]["matches_alive"] == 0
    engine.close()


async def test_without_a_cache_all_is_computed_two_hundred_times() -> None:
    assert await prefilled_tokens(NoCache()) == REQUESTS * len(PROMPT)
