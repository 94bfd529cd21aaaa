"""The runner when its core fails: the requests of that call end, everybody else goes on."""

from __future__ import annotations

import asyncio

import pytest

from bul.config import ServeConfig, TimedConfig
from bul.errors import EngineClosed, EngineFailed
from bul.inference.contract import Sampling
from bul.testing.cores import RecordingCore
from bul.testing.prefix_cache import DictPrefixCache
from bul.testing.replies import Reply, reply
from bul.testing.waiting import until

from .conftest import StartRunner

SERVE = ServeConfig(slots=4, context_tokens=1024)
PACED = TimedConfig(prefill_tokens_per_s=1e6, decode_tokens_per_s=500, block_bytes=256)


def prompt(tokens: int, first: int = 0) -> list[int]:
    return [first, *range(1, tokens)]


@pytest.mark.parametrize("call", ["clear", "prefill", "sample", "decode"])
async def test_a_failing_call_is_a_clear_error_and_the_next_request_is_answered(
    start: StartRunner, call: str
) -> None:
    core = RecordingCore(SERVE)
    cache = DictPrefixCache()
    runner = start(core, cache)
    expected = await reply(runner, prompt(100), use_cache=False)
    core.fail_next.add(call)
    with pytest.raises(EngineFailed, match=f"{call} was told to fail") as failed:
        await reply(runner, prompt(100))
    assert isinstance(failed.value.__cause__, RuntimeError)
    assert runner.stats()["core_errors_total"] == 1
    for _ in range(5):  # more than the slots: none was lost
        assert (await reply(runner, prompt(100))).text == expected.text
    assert not cache.claims
    assert not cache.matches


async def test_a_failing_decode_ends_its_batch_and_spares_who_waits(start: StartRunner) -> None:
    core = RecordingCore(SERVE, PACED)
    runner = start(core)
    tasks = [
        asyncio.create_task(reply(runner, prompt(10, first), Sampling(max_tokens=200)))
        for first in range(6)
    ]
    await until(lambda: (0, 1, 2, 3) in core.named("decode"))
    core.fail_next.add("decode")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [EngineFailed] * 4 + [Reply] * 2
    assert runner.load().running == 0


async def test_a_failing_prefill_spares_who_generates(start: StartRunner) -> None:
    core = RecordingCore(SERVE, PACED)
    runner = start(core)
    generating = asyncio.create_task(reply(runner, prompt(10), Sampling(max_tokens=50)))
    await until(lambda: bool(core.named("decode")))
    core.fail_next.add("prefill")
    with pytest.raises(EngineFailed):
        await reply(runner, prompt(100, 1))
    assert (await generating).output_tokens == 50


async def test_a_claimant_that_fails_passes_its_claim_on(start: StartRunner) -> None:
    core = RecordingCore(SERVE)
    cache = DictPrefixCache()
    runner = start(core, cache)
    core.fail_next.add("prefill")
    results = await asyncio.gather(
        *(reply(runner, prompt(300)) for _ in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, EngineFailed) for result in results) == 1
    assert len({result.text for result in results if isinstance(result, Reply)}) == 1
    assert set(cache.computed.values()) == {1}


async def test_an_idle_loop_keeps_beating(start: StartRunner) -> None:
    runner = start(RecordingCore(SERVE), heartbeat_s=0.01)
    await reply(runner, prompt(5))
    first = runner._beat_s
    await until(lambda: runner._beat_s > first + 0.02)
    assert runner.load().loop_age_s < 30


async def test_a_loop_that_ended_refuses_at_once(start: StartRunner) -> None:
    runner = start(RecordingCore(SERVE))
    await runner.close(0.0)
    with pytest.raises(EngineClosed):
        await reply(runner, prompt(5))
