"""A reply that broke off goes on as it would have gone on: tokens, held-back text and counts."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import pytest

from bul.config import ServeConfig, TimedConfig
from bul.errors import InvalidRequest
from bul.inference.contract import Delta, GenerateRequest, ModelCore, Sampling
from bul.inference.embedded import EmbeddedCore
from bul.inference.model_file import ensure_model
from bul.inference.runner import BatchingRunner
from bul.inference.timed import TimedCore
from bul.testing.prefix_cache import DictPrefixCache

pytestmark = pytest.mark.steady

PROMPT = "A prompt of some length that fills more than one block of tokens, as chats do. " * 3


class StartRunner(Protocol):
    def __call__(self, core: ModelCore, cache: DictPrefixCache | None = None) -> BatchingRunner: ...


class MakeCore(Protocol):
    def __call__(self, *, slots: int = 4) -> EmbeddedCore: ...


async def _reply(runner: BatchingRunner, request: GenerateRequest) -> list[Delta]:
    return [delta async for delta in runner.generate(request)]


def _request(core: ModelCore, sampling: Sampling) -> GenerateRequest:
    tokens = core.tokenize(PROMPT, special=False)
    return GenerateRequest(request_id="r", tokens=tokens, sampling=sampling)


def _text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def _resumed_equals_whole(
    runner: BatchingRunner, request: GenerateRequest, every: int = 1
) -> None:
    """Cut after each `every`-th delta; what was sent and what then comes are the whole reply."""
    whole = await _reply(runner, request)
    assert len(whole) > 8
    for cut in range(1, len(whole) - 1, every):
        sent = whole[:cut]
        tokens = [token for delta in sent for token in delta.tokens]
        rest = await _reply(runner, dataclasses.replace(request, resumed=tokens))
        assert _text(sent) + _text(rest) == _text(whole), cut
        assert rest[-1].output_tokens == whole[-1].output_tokens
        assert rest[-1].finish_reason == whole[-1].finish_reason


def _timed() -> TimedCore:
    return TimedCore(ServeConfig(), TimedConfig(time_scale=0.0, block_bytes=256))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=24),
        Sampling(max_tokens=24, temperature=0.9, seed=7),
        Sampling(max_tokens=24, stop=("g d", "zzz")),
    ],
)
async def test_a_timed_reply_goes_on_from_any_piece(start: StartRunner, sampling: Sampling) -> None:
    core = _timed()
    request = _request(core, sampling)
    if sampling.stop:  # a string that spans two tokens of this very reply
        text = _text(
            await _reply(start(_timed()), dataclasses.replace(request, sampling=Sampling()))
        )
        stop = text[4 * 18 + 2 : 4 * 18 + 6]
        request = dataclasses.replace(request, sampling=dataclasses.replace(sampling, stop=(stop,)))
    await _resumed_equals_whole(start(core), request)


@pytest.mark.parametrize("temperature", [0.9, 1.5])
async def test_a_seeded_reply_draws_what_it_would_have_drawn(
    start: StartRunner, make_core: MakeCore, temperature: float
) -> None:
    """On the tiny model, whose 269 tokens are bytes: characters are cut in the middle."""
    core = make_core()
    sampling = Sampling(max_tokens=40, temperature=temperature, top_p=0.95, seed=11)
    await _resumed_equals_whole(start(core), _request(core, sampling), every=3)


async def test_the_control_another_seed_goes_on_otherwise(
    start: StartRunner, make_core: MakeCore
) -> None:
    core = make_core()
    sampling = Sampling(max_tokens=40, temperature=1.5, seed=11)
    request = _request(core, sampling)
    runner = start(core)
    whole = await _reply(runner, request)
    tokens = whole[0].tokens
    other = dataclasses.replace(sampling, seed=12)
    rest = await _reply(runner, dataclasses.replace(request, resumed=tokens, sampling=other))
    assert _text(whole[:1]) + _text(rest) != _text(whole)


async def test_what_follows_is_the_same_with_the_cache_and_without(
    start: StartRunner, make_core: MakeCore
) -> None:
    core = make_core()
    runner = start(core, DictPrefixCache())
    request = _request(core, Sampling(max_tokens=90))
    whole = await _reply(runner, request)
    tokens = [token for delta in whole[:-8] for token in delta.tokens]
    resumed = dataclasses.replace(request, resumed=tokens)
    first, second = await _reply(runner, resumed), await _reply(runner, resumed)
    off = await _reply(runner, dataclasses.replace(resumed, use_cache=False))
    assert _text(first) == _text(second) == _text(off)
    assert second[-1].cached_tokens > off[-1].cached_tokens == 0
    assert second[-1].cached_tokens <= len(request.tokens)


@pytest.mark.slow
async def test_the_real_model_goes_on_as_if_nothing_had_happened(start: StartRunner) -> None:
    core = EmbeddedCore(ensure_model(print), ServeConfig(slots=2, context_tokens=512))
    request = _request(core, Sampling(max_tokens=24))
    await _resumed_equals_whole(start(core), request, every=7)


@pytest.mark.parametrize(
    ("sent", "said"), [([5] * 4, "nothing to generate"), ([100_000], "not a token")]
)
async def test_what_cannot_go_on_is_refused(
    start: StartRunner, make_core: MakeCore, sent: list[int], said: str
) -> None:
    core = make_core()
    request = dataclasses.replace(_request(core, Sampling(max_tokens=4)), resumed=sent)
    with pytest.raises(InvalidRequest, match=said):
        await _reply(start(core), request)
