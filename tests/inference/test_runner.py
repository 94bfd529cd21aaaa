"""The runner's async face and its batching."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import aclosing

import pytest

from bul.config import ServeConfig, TimedConfig
from bul.errors import EngineClosed, InvalidRequest, Overloaded
from bul.inference.contract import GenerateRequest, Runner, Sampling
from bul.inference.runner import BatchingRunner
from bul.inference.timed import TimedCore
from bul.testing.cores import RecordingCore, ScriptedCore
from bul.testing.loop_lag import LoopLag
from bul.testing.replies import reply
from bul.testing.waiting import until

from .conftest import StartRunner

SERVE = ServeConfig(slots=4, context_tokens=1024)
SLOW = TimedConfig(prefill_tokens_per_s=1e6, decode_tokens_per_s=200, block_bytes=256)


def prompt(tokens: int, first: int = 0) -> list[int]:
    return [first, *range(1, tokens)]


def endless(first: int = 0) -> GenerateRequest:
    sampling = Sampling(max_tokens=1_000_000)
    return GenerateRequest(request_id="endless", tokens=prompt(10, first), sampling=sampling)


async def until_idle(runner: Runner) -> None:
    await until(lambda: not runner.load().running and not runner.load().waiting)


async def test_a_reply_streams_word_by_word_and_ends_with_its_counts(start: StartRunner) -> None:
    runner: Runner = start(TimedCore(SERVE, SLOW))
    answer = await reply(runner, prompt(70), Sampling(max_tokens=5))
    assert len(answer.deltas) == 5
    assert [delta.output_tokens for delta in answer.deltas] == [1, 2, 3, 4, 5]
    assert [delta.finish_reason for delta in answer.deltas] == [None] * 4 + ["length"]
    assert len(answer.text) == 20


async def test_a_prompt_is_computed_in_canonical_cuts(start: StartRunner) -> None:
    core = RecordingCore(SERVE)
    await reply(start(core), prompt(150))
    assert core.named("prefill") == [(0, 0, 64), (0, 64, 64), (0, 128, 22)]


async def test_a_long_prompt_delays_the_others_by_one_block_at_a_time(start: StartRunner) -> None:
    core = RecordingCore(SERVE, TimedConfig(decode_tokens_per_s=1000, block_bytes=256))
    runner = start(core)
    async with aclosing(runner.generate(endless())) as stream:
        await anext(stream)
        await reply(runner, prompt(640, 1), Sampling(max_tokens=1))
    calls = [name for name, _ in core.calls if name in ("prefill", "decode")]
    first, last = calls.index("decode"), len(calls) - calls[::-1].index("prefill")
    between = calls[first:last]
    assert between.count("prefill") == 10
    assert ("prefill", "prefill") not in set(itertools.pairwise(between))


async def test_two_prompts_take_turns_block_by_block(start: StartRunner) -> None:
    core = RecordingCore(SERVE, TimedConfig(prefill_tokens_per_s=20_000, block_bytes=256))
    runner = start(core)
    await asyncio.gather(reply(runner, prompt(640)), reply(runner, prompt(640, 1)))
    slots = [slot for slot, _, _ in core.named("prefill")]
    turns = "".join(map(str, slots)).strip("0").strip("1")
    assert len(slots) == 20
    assert "00" not in turns[:-10]
    assert "11" not in turns[:-10]


async def test_generating_requests_share_one_decode_call(start: StartRunner) -> None:
    core = RecordingCore(SERVE, SLOW)
    runner = start(core)
    await asyncio.gather(*(reply(runner, prompt(10, first)) for first in range(4)))
    assert (0, 1, 2, 3) in core.named("decode")
    assert len(core.named("decode")) < 4 * 7


async def test_more_requests_than_slots_are_all_answered(start: StartRunner) -> None:
    runner = start(RecordingCore(SERVE))
    answers = await asyncio.gather(*(reply(runner, prompt(100, first)) for first in range(60)))
    alone = start(RecordingCore(SERVE))
    for first in (0, 30, 59):
        assert answers[first].text == (await reply(alone, prompt(100, first))).text


async def test_a_character_over_two_tokens_and_a_stop_string_over_three_come_out_right(
    start: StartRunner,
) -> None:
    script = [b"caf", "é".encode()[:1], "é".encode()[1:], b" E", b"N", b"D more"]
    runner = start(ScriptedCore(script))
    answer = await reply(runner, prompt(3), Sampling(max_tokens=50, stop=("END",)))
    assert answer.text == "café "
    assert answer.finish_reason == "stop"
    assert [delta.text for delta in answer.deltas] == ["caf", "é", " ", ""]


async def test_the_models_own_end_is_a_stop_and_is_not_counted(start: StartRunner) -> None:
    answer = await reply(start(ScriptedCore([b"one", b" two"])), prompt(3))
    assert (answer.text, answer.finish_reason, answer.output_tokens) == ("one two", "stop", 2)


async def test_a_held_stop_string_is_sent_when_the_length_ends_the_reply(
    start: StartRunner,
) -> None:
    runner = start(ScriptedCore([b"one", b" EN", b"D"]))
    answer = await reply(runner, prompt(3), Sampling(max_tokens=2, stop=("END",)))
    assert (answer.text, answer.finish_reason) == ("one EN", "length")


@pytest.mark.parametrize("asked", [1, 23, 24, 25, 1_000_000])
async def test_output_is_clipped_to_the_context(start: StartRunner, asked: int) -> None:
    runner = start(RecordingCore(SERVE))
    answer = await reply(runner, prompt(1000), Sampling(max_tokens=asked))
    assert answer.output_tokens == min(asked, 24)
    assert answer.finish_reason == "length"


async def test_a_prompt_that_leaves_room_for_one_token_is_answered(start: StartRunner) -> None:
    assert (await reply(start(RecordingCore(SERVE)), prompt(1023))).output_tokens == 1


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "param", "code"),
    [
        (1024, 1, "prompt", "context_length_exceeded"),
        (0, 1, "prompt", None),
        (3, 0, "max_tokens", None),
    ],
)
async def test_an_impossible_request_is_refused_by_name(
    start: StartRunner, tokens: int, max_tokens: int, param: str, code: str | None
) -> None:
    runner = start(RecordingCore(SERVE))
    with pytest.raises(InvalidRequest) as refused:
        await reply(runner, prompt(tokens)[:tokens], Sampling(max_tokens=max_tokens))
    assert (refused.value.param, refused.value.code) == (param, code)
    assert (await reply(runner, prompt(3))).output_tokens == 8


async def test_a_full_queue_refuses_and_takes_the_next_once_there_is_room(
    start: StartRunner,
) -> None:
    runner = start(TimedCore(ServeConfig(slots=1), SLOW), waiting_max=1)
    async with aclosing(runner.generate(endless())) as running:
        await anext(running)
        waiting = asyncio.create_task(reply(runner, prompt(5)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await reply(runner, prompt(6))
        assert refused.value.retry_after_s >= 1.0
    assert (await waiting).output_tokens == 8
    assert (await reply(runner, prompt(6))).output_tokens == 8


async def test_the_load_shows_who_runs_and_who_waits(start: StartRunner) -> None:
    runner = start(TimedCore(ServeConfig(slots=1), SLOW))
    async with aclosing(runner.generate(endless())) as running:
        await anext(running)
        waiting = asyncio.create_task(reply(runner, prompt(5)))
        await until(lambda: runner.load().queue_delay_s > 0.02)
        load = runner.load()
        assert (load.running, load.waiting, load.slots) == (1, 1, 1)
        assert 0 < load.decode_tokens_per_s < 400
        assert load.prefill_tokens_per_s > 0
    await waiting
    await until_idle(runner)
    assert runner.load().queue_delay_s == 0.0


async def test_interactive_requests_go_before_batch_ones_and_each_in_order(
    start: StartRunner,
) -> None:
    runner = start(TimedCore(ServeConfig(slots=1), SLOW))
    order: list[str] = []

    async def ask(name: str, priority: str) -> None:
        await reply(runner, prompt(5), Sampling(max_tokens=1), priority=priority)
        order.append(name)

    async with aclosing(runner.generate(endless())) as running:
        await anext(running)
        names = [("p", "prefetch"), ("b1", "batch"), ("i1", "interactive"), ("x", "unknown")]
        names += [("i2", "interactive"), ("b2", "batch")]
        tasks = [asyncio.create_task(ask(name, priority)) for name, priority in names]
        await until(lambda: runner.load().waiting == len(names))
    await asyncio.gather(*tasks)
    assert order == ["i1", "i2", "b1", "x", "b2", "p"]


async def test_closing_the_stream_frees_the_slot(start: StartRunner) -> None:
    runner = start(TimedCore(ServeConfig(slots=1), SLOW))
    for _ in range(3):
        async with aclosing(runner.generate(endless())) as stream:
            await anext(stream)
    await until_idle(runner)
    assert runner.stats()["cancelled_total"] == 3
    assert runner.stats()["output_tokens_total"] < 100
    assert (await reply(runner, prompt(5))).output_tokens == 8


async def test_cancelling_a_task_that_waits_for_a_slot_leaves_nothing(start: StartRunner) -> None:
    runner = start(TimedCore(ServeConfig(slots=1), SLOW))
    async with aclosing(runner.generate(endless())) as running:
        await anext(running)
        waiting = asyncio.create_task(reply(runner, prompt(5)))
        await until(lambda: runner.load().waiting == 1)
        waiting.cancel()
        await until(lambda: runner.load().waiting == 0)
        assert runner.load().running == 1


async def test_nothing_lives_longer_than_its_deadline(start: StartRunner) -> None:
    runner = start(
        TimedCore(ServeConfig(slots=1, context_tokens=1 << 20), SLOW), request_deadline_s=0.5
    )
    with pytest.raises(Overloaded, match=r"0\.5 s"):
        async for _ in runner.generate(endless()):
            pass
    assert runner.stats()["deadline_total"] == 1
    assert (await reply(runner, prompt(5), Sampling(max_tokens=1))).output_tokens == 1


async def test_closing_lets_running_requests_finish(start: StartRunner) -> None:
    core = RecordingCore(SERVE, SLOW)
    runner = start(core)
    running = asyncio.create_task(reply(runner, prompt(5), Sampling(max_tokens=20)))
    await until(lambda: runner.load().running == 1)
    closing = asyncio.create_task(runner.close(30.0))
    await asyncio.sleep(0.01)
    with pytest.raises(EngineClosed):
        await reply(runner, prompt(5))
    assert (await running).output_tokens == 20
    await closing
    assert core.closed


async def test_closing_without_patience_ends_running_requests_with_an_error(
    start: StartRunner,
) -> None:
    runner = start(TimedCore(SERVE, SLOW))
    running = asyncio.create_task(reply(runner, prompt(5), Sampling(max_tokens=1000)))
    await until(lambda: runner.load().running == 1)
    await runner.close(0.0)
    with pytest.raises(EngineClosed):
        await running
    await runner.close(0.0)


async def test_a_slow_reader_loses_nothing_and_holds_no_slot(start: StartRunner) -> None:
    runner = start(RecordingCore(ServeConfig(slots=1)))
    request = GenerateRequest(
        request_id="slow", tokens=prompt(5), sampling=Sampling(max_tokens=100)
    )
    async with aclosing(runner.generate(request)) as stream:
        deltas = [await anext(stream)]
        assert (await reply(runner, prompt(6))).output_tokens == 8
        deltas += [delta async for delta in stream]
    assert [delta.output_tokens for delta in deltas] == list(range(1, 101))


def test_a_runner_serves_several_event_loops_one_after_the_other() -> None:
    runner = BatchingRunner(RecordingCore(SERVE))
    texts = [asyncio.run(reply(runner, prompt(70))).text for _ in range(2)]
    assert texts[0] == texts[1]
    asyncio.run(runner.close(1.0))


async def test_the_event_loop_keeps_its_time_under_load(
    start: StartRunner, record_property: Callable[[str, object], None]
) -> None:
    """The figure is recorded, not judged: this machine may be busy with other things."""
    runner = start(RecordingCore(ServeConfig(slots=32, context_tokens=1024)))
    async with LoopLag() as lag:
        await asyncio.gather(
            *(reply(runner, prompt(300, first), Sampling(max_tokens=64)) for first in range(128))
        )
    record_property("loop_lag_p99_ms", lag.quantile_ms(0.99))
    assert lag.samples_ms
