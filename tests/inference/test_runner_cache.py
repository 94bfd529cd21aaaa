"""The runner with a prefix cache: the same text, less work, and a cache that may do its worst."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from bul.blocks.prefix import NoCache, PrefixCache
from bul.config import ServeConfig, TimedConfig
from bul.inference.contract import GenerateRequest, Sampling
from bul.inference.timed import TimedCore
from bul.testing.cores import RecordingCore
from bul.testing.prefix_cache import (
    DictPrefixCache,
    GatedPrefixCache,
    RaisingPrefixCache,
    WrongPrefixCache,
)
from bul.testing.replies import Reply, reply
from bul.testing.waiting import until

from .conftest import StartRunner

SERVE = ServeConfig(slots=4, context_tokens=1024)
SLOW = TimedConfig(prefill_tokens_per_s=1e6, decode_tokens_per_s=200, block_bytes=256)
MEMBERS: tuple[str, ...] = ("match_prefix", "set_blocks", "finish", "observe_prefill")
MEMBERS += ("when_settled", "settled", "blocks", "release")


def prompt(tokens: int, first: int = 0) -> list[int]:
    return [first, *range(1, tokens)]


def branching_prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts that share prefixes of each other, cut at any token."""
    chance = random.Random(seed)
    prompts = [prompt(chance.randint(1, 400))]
    while len(prompts) < count:
        parent = chance.choice(prompts)
        kept = parent[: chance.randint(0, len(parent))]
        fresh = [chance.randrange(1 << 31) for _ in range(chance.randint(1, 150))]
        prompts.append((kept + fresh)[:900])
    return prompts


async def answers(
    start: StartRunner, cache: PrefixCache, prompts: list[list[int]], core: TimedCore | None = None
) -> list[Reply]:
    runner = start(core or RecordingCore(SERVE), cache)
    return list(await asyncio.gather(*(reply(runner, tokens) for tokens in prompts)))


async def test_the_second_time_a_prompt_is_loaded_and_its_text_is_the_same(
    start: StartRunner,
) -> None:
    core = RecordingCore(SERVE)
    runner = start(core, DictPrefixCache())
    first, second = await reply(runner, prompt(200)), await reply(runner, prompt(200))
    assert first.text == second.text
    assert (first.cached_tokens, second.cached_tokens) == (0, 192)
    assert core.named("prefill")[4:] == [(0, 192, 8)]
    assert {delta.cached_tokens for delta in second.deltas} == {192}


async def test_a_prompt_of_whole_blocks_computes_its_last_one_and_stores_it_once(
    start: StartRunner,
) -> None:
    cache = DictPrefixCache()
    runner = start(RecordingCore(SERVE), cache)
    replies = [await reply(runner, prompt(128)) for _ in range(3)]
    assert [answer.cached_tokens for answer in replies] == [0, 64, 64]
    assert len({answer.text for answer in replies}) == 1
    assert set(cache.computed.values()) == {1}


@pytest.mark.parametrize("seed", range(4))
async def test_texts_with_and_without_cache_are_equal_under_concurrency(
    start: StartRunner, seed: int
) -> None:
    prompts = branching_prompts(120, seed)
    core = RecordingCore(SERVE)
    cached = await answers(start, DictPrefixCache(), prompts, core)
    plain = await answers(start, NoCache(), prompts)
    assert [answer.text for answer in cached] == [answer.text for answer in plain]
    assert sum(answer.cached_tokens for answer in cached) > 2000
    assert sum(answer.cached_tokens for answer in plain) == 0
    assert core.wrong_blocks == 0


async def test_control_a_cache_with_wrong_blocks_changes_the_texts(start: StartRunner) -> None:
    prompts = branching_prompts(120, 0)
    core = RecordingCore(SERVE)
    wrong = await answers(start, WrongPrefixCache(), prompts, core)
    plain = await answers(start, NoCache(), prompts)
    for one, other in zip(wrong, plain, strict=True):
        assert (one.text == other.text) == (one.cached_tokens == 0)
    assert core.wrong_blocks > 0
    assert any(answer.cached_tokens for answer in wrong)


@pytest.mark.parametrize("resize", [-1, -255])
async def test_blocks_of_a_wrong_size_are_a_miss(start: StartRunner, resize: int) -> None:
    prompts = branching_prompts(40, 1)
    core = RecordingCore(SERVE)
    runner = start(core, WrongPrefixCache(resize=resize))
    wrong = await asyncio.gather(*(reply(runner, tokens) for tokens in prompts))
    plain = await answers(start, NoCache(), prompts)
    assert [answer.text for answer in wrong] == [answer.text for answer in plain]
    assert sum(answer.cached_tokens for answer in wrong) == 0
    assert runner.stats()["cache_errors_total"] > 0
    assert core.named("import_blocks") == []


@pytest.mark.parametrize("broken", [*((name,) for name in MEMBERS), MEMBERS])
async def test_a_cache_that_raises_still_gets_its_requests_answered(
    start: StartRunner, broken: tuple[str, ...]
) -> None:
    runner = start(RecordingCore(SERVE), RaisingPrefixCache(*broken))
    prompts = branching_prompts(20, 2)
    broken_replies = await asyncio.gather(*(reply(runner, tokens) for tokens in prompts))
    plain = await answers(start, NoCache(), prompts)
    assert [answer.text for answer in broken_replies] == [answer.text for answer in plain]
    assert runner.stats()["cache_errors_total"] > 0


async def test_control_a_cache_that_does_not_raise_counts_no_errors(start: StartRunner) -> None:
    runner = start(RecordingCore(SERVE), RaisingPrefixCache())
    await asyncio.gather(*(reply(runner, tokens) for tokens in branching_prompts(20, 2)))
    assert runner.stats()["cache_errors_total"] == 0


async def test_an_import_that_fails_in_the_core_is_recomputed(start: StartRunner) -> None:
    core = RecordingCore(SERVE)
    runner = start(core, DictPrefixCache())
    first = await reply(runner, prompt(200))
    core.fail_next.add("import_blocks")
    second = await reply(runner, prompt(200))
    assert (second.text, second.cached_tokens) == (first.text, 0)
    assert runner.stats()["cache_errors_total"] == 1
    assert (await reply(runner, prompt(200))).cached_tokens == 192


async def test_an_export_that_fails_does_not_touch_the_reply(start: StartRunner) -> None:
    core = RecordingCore(SERVE)
    cache = DictPrefixCache()
    runner = start(core, cache)
    core.fail_next.add("export_blocks")
    first = await reply(runner, prompt(200))
    assert not cache.stored
    assert not cache.claims
    assert (await reply(runner, prompt(200))).text == first.text
    assert len(cache.stored) == 3


async def test_two_hundred_identical_cold_prompts_compute_each_block_once(
    start: StartRunner,
) -> None:
    core = RecordingCore(SERVE)
    cache = DictPrefixCache()
    runner = start(core, cache)
    replies = await asyncio.gather(*(reply(runner, prompt(300)) for _ in range(200)))
    assert len({answer.text for answer in replies}) == 1
    assert list(cache.computed.values()) == [1] * 4
    assert core.prefilled_tokens == 300 + 199 * (300 - 256)
    assert not cache.claims
    assert not cache.matches


async def test_control_without_claims_identical_prompts_compute_the_same_blocks(
    start: StartRunner,
) -> None:
    core = RecordingCore(SERVE)
    await answers(start, NoCache(), [prompt(300)] * 200, core)
    assert core.prefilled_tokens == 200 * 300


async def test_requests_that_wait_for_a_load_hold_no_slot(start: StartRunner) -> None:
    cache = GatedPrefixCache()
    runner = start(RecordingCore(SERVE), cache)
    loading = [asyncio.create_task(reply(runner, prompt(200, first))) for first in range(8)]
    await until(lambda: len(cache.matches) == 8)
    assert (await reply(runner, prompt(30))).output_tokens == 8
    assert (runner.load().running, runner.load().waiting) == (0, 8)
    cache.open_gate()
    assert {answer.output_tokens for answer in await asyncio.gather(*loading)} == {8}


async def test_requests_that_wait_for_anothers_blocks_hold_no_slot(start: StartRunner) -> None:
    core = RecordingCore(SERVE, TimedConfig(prefill_tokens_per_s=2500, block_bytes=256))
    cache = DictPrefixCache()
    runner = start(core, cache)
    same = [asyncio.create_task(reply(runner, prompt(900))) for _ in range(6)]
    await until(lambda: len(cache.matches) == 6)
    await until(lambda: (runner.load().running, runner.load().waiting) == (1, 5))
    await reply(runner, prompt(900, 1), Sampling(max_tokens=1))
    assert len({answer.text for answer in await asyncio.gather(*same)}) == 1


async def test_a_load_that_never_ends_is_given_up_and_recomputed(start: StartRunner) -> None:
    cache = GatedPrefixCache()
    runner = start(RecordingCore(SERVE), cache, request_deadline_s=1.0, heartbeat_s=0.01)
    assert (await reply(runner, prompt(200))).output_tokens == 8
    assert runner.stats()["cache_impatient_total"] == 1
    assert not cache.matches


async def test_cancelling_the_one_who_computes_passes_its_work_and_its_claim_on(
    start: StartRunner,
) -> None:
    core = RecordingCore(SERVE, TimedConfig(prefill_tokens_per_s=2000, block_bytes=256))
    cache = DictPrefixCache()
    runner = start(core, cache)
    first = runner.generate(
        GenerateRequest(request_id="first", tokens=prompt(900), sampling=Sampling())
    )
    computing = asyncio.ensure_future(anext(first))
    await until(lambda: runner.load().running == 1)
    other = asyncio.create_task(reply(runner, prompt(900), Sampling(max_tokens=1)))
    await until(lambda: len(cache.matches) == 2 and core.prefilled_tokens >= 128)
    computing.cancel()
    assert 128 <= (await other).cached_tokens < 896
    await until(lambda: not cache.matches and not cache.claims)
    assert list(cache.computed.values()) == [1] * 14
    assert core.wrong_blocks == 0


async def test_cancelled_requests_leave_no_match_no_claim_and_no_slot(start: StartRunner) -> None:
    core = RecordingCore(SERVE, TimedConfig(prefill_tokens_per_s=20_000, block_bytes=256))
    cache = DictPrefixCache()
    runner = start(core, cache)
    chance = random.Random(5)
    tasks = [asyncio.create_task(reply(runner, p)) for p in branching_prompts(60, 5)]
    while not all(task.done() for task in tasks):
        chance.choice(tasks).cancel()
        await asyncio.sleep(0.001)
    await until(lambda: runner.load().running == runner.load().waiting == 0)
    assert not cache.matches
    assert not cache.claims
    assert len(cache.finished) == runner.stats()["requests_total"]
    assert (await reply(runner, prompt(200))).output_tokens == 8


async def test_requests_without_cache_neither_read_nor_write_it(start: StartRunner) -> None:
    cache = DictPrefixCache()
    runner = start(RecordingCore(SERVE), cache)
    await reply(runner, prompt(200), use_cache=False)
    assert not cache.stored
    assert not cache.finished
    await reply(runner, prompt(200))
    assert (await reply(runner, prompt(200), use_cache=False)).cached_tokens == 0


async def test_tenants_do_not_share_blocks(start: StartRunner) -> None:
    runner = start(RecordingCore(SERVE), DictPrefixCache())
    await reply(runner, prompt(200), salt=b"one")
    assert (await reply(runner, prompt(200), salt=b"other")).cached_tokens == 0
    assert (await reply(runner, prompt(200), salt=b"one")).cached_tokens == 192


async def test_generated_blocks_are_stored_only_when_asked_for(start: StartRunner) -> None:
    for cache_generated, cached_tokens in ((False, 64), (True, 192)):
        core = RecordingCore(SERVE)
        runner = start(core, DictPrefixCache(), cache_generated=cache_generated)
        said = await reply(runner, prompt(100), Sampling(max_tokens=100))
        tokens = prompt(100) + core.tokenize(said.text, special=False)
        again = await reply(runner, tokens)
        assert again.cached_tokens == cached_tokens
        assert again.text == (await reply(runner, tokens, use_cache=False)).text
        assert core.wrong_blocks == 0


async def test_the_cache_hears_how_long_prefill_took_and_how_requests_ended(
    start: StartRunner,
) -> None:
    cache = DictPrefixCache()
    core = TimedCore(SERVE, TimedConfig(prefill_tokens_per_s=20_000, block_bytes=256))
    runner = start(core, cache)
    await reply(runner, prompt(200), Sampling(max_tokens=1))
    await reply(runner, prompt(200), Sampling(max_tokens=3))
    await until(lambda: len(cache.finished) == 2)
    assert [tokens for tokens, _ in cache.prefills] == [200, 8]
    assert cache.prefills[0][1] >= 0.0099
    assert cache.finished == [(3, 1), (3, 3)]


async def test_many_waiting_requests_pin_only_so_many_matches(start: StartRunner) -> None:
    cache = DictPrefixCache()
    runner = start(TimedCore(ServeConfig(slots=1), SLOW), cache)
    sampling = Sampling(max_tokens=1_000_000)
    request = GenerateRequest(request_id="long", tokens=prompt(10), sampling=sampling)
    async with aclosing(runner.generate(request)) as running:
        await anext(running)
        waiting = [asyncio.create_task(reply(runner, prompt(70, n))) for n in range(100)]
        await until(lambda: runner.load().waiting == 100)
        for _ in range(10):
            await anext(running)
        assert len(cache.matches) == 32
        for task in waiting:
            task.cancel()
        await until(lambda: not cache.matches)


async def test_a_crowd_that_waits_for_one_prefix_keeps_nobody_from_a_free_slot(
    start: StartRunner,
) -> None:
    timed = TimedConfig(prefill_tokens_per_s=3000, decode_tokens_per_s=1e6, block_bytes=256)
    runner = start(RecordingCore(SERVE, timed), DictPrefixCache())
    crowd = [asyncio.create_task(reply(runner, prompt(900))) for _ in range(60)]
    await asyncio.sleep(0)
    assert (await reply(runner, prompt(70, 1), Sampling(max_tokens=1))).output_tokens == 1
    assert not any(task.done() for task in crowd)
    assert len({answer.text for answer in await asyncio.gather(*crowd)}) == 1
