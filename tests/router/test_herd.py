"""Many equal cold prompts at once are computed once; a warm prefix that all want spreads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator

import pytest

from bul.config import ServeConfig, TimedConfig
from bul.router.app import Router
from bul.router.residency import Residency
from bul.router.route import choose_prefix, score_prefix
from bul.testing.replica import ReplicaUnderTest, running_replica
from bul.testing.router_net import RawClient, RouterNet, post
from bul.testing.waiting import until

HERD = 200
REPLICAS = 4
COMPUTED_MAX = 1.05
BALANCE_MAX = 1.5


# The rule.


def _scores(tokens: list[float], in_flight: list[int], herd: list[float]) -> list[float]:
    return score_prefix(tokens, in_flight, per_token_ms=0.5, per_request_ms=20.0, herd=herd)


def test_a_prompt_goes_where_it_is_being_computed_however_many_wait_there() -> None:
    scores = _scores([0.0, 1000.0, 1000.0], [100, 0, 0], [1000.0, 0.0, 0.0])
    assert scores[0] > 0
    assert scores[1:] == [0.0, 0.0]


def test_a_prefix_that_is_warm_somewhere_makes_no_herd() -> None:
    assert _scores([0.0, 0.0], [9, 0], [1000.0, 0.0])[1] > 0


@pytest.mark.parametrize(("shared", "herded"), [(499.0, False), (500.0, True), (900.0, True)])
def test_half_of_the_cost_elsewhere_makes_a_herd_and_less_does_not(
    shared: float, herded: bool
) -> None:
    scores = _scores([1000.0 - shared, 1000.0], [50, 0], [shared, 0.0])
    assert (scores[1] == 0.0) is herded


def test_of_two_homes_the_less_loaded_gets_it() -> None:
    chosen = choose_prefix(
        [0.0, 0.0, 900.0],
        [9, 3, 0],
        0,
        per_token_ms=0.5,
        per_request_ms=20.0,
        herd=[900.0, 900.0, 0.0],
    )
    assert chosen == 1


def test_cold_becomes_warm_with_the_first_answer() -> None:
    residency = Residency(100)
    residency.add([1, 2, 3], 1.0)
    assert (residency.matched([1, 2, 3], 1.0), residency.warm([1, 2, 3], 1.0)) == (3, 0)
    residency.computed([1, 2], 2.0)
    assert residency.warm([1, 2, 3], 2.0) == 2
    residency.computed([1, 2, 3], 2.0)
    assert residency.warm([1, 2, 3], 2.0) == 3


# Live, over four replicas that take their time.


@contextlib.asynccontextmanager
async def four_replicas(timed: TimedConfig) -> AsyncIterator[list[ReplicaUnderTest]]:
    async with contextlib.AsyncExitStack() as stack:
        serve = ServeConfig(port=0, slots=16, waiting_max=256)
        yield [
            await stack.enter_async_context(running_replica(serve, timed)) for _ in range(REPLICAS)
        ]


def _ask(text: str, max_tokens: int = 2) -> bytes:
    message = {"role": "user", "content": text}
    return post(
        json.dumps({"model": "bul-timed", "messages": [message], "max_tokens": max_tokens}).encode()
    )


async def _answer(net: RouterNet, router: Router, request: bytes) -> int:
    """The prompt's tokens."""
    client: RawClient = await net.client(router)
    await client.send(request)
    async with asyncio.timeout(60):
        while not (head := await client.reader.readuntil(b"\r\n\r\n")):
            pass
    assert b" 200 " in head[:20]
    length = next(line for line in head.lower().split(b"\r\n") if b"content-length" in line)
    body = json.loads(await client.reader.readexactly(int(length.split(b":")[1])))
    client.close()
    return int(body["usage"]["prompt_tokens"])


async def _herd(net: RouterNet, policy: str) -> tuple[float, int]:
    """How often a full block was computed on average, and the tokens of tails beside them."""
    async with four_replicas(TimedConfig(prefill_tokens_per_s=2000, block_bytes=256)) as replicas:
        router = await net.router(*(found.url for found in replicas), policy=policy)
        request = _ask("a cold prompt that everybody has " * 250)
        answers = await asyncio.gather(*(_answer(net, router, request) for _ in range(HERD)))
        blocks = sum(found.runner.stats()["blocks_stored_total"] for found in replicas)
        tokens = sum(found.runner.stats()["prefill_tokens_total"] for found in replicas)
        block_tokens = replicas[0].core.block_tokens
        return blocks / (answers[0] // block_tokens), tokens - blocks * block_tokens


@pytest.mark.slow
async def test_two_hundred_equal_cold_prompts_compute_each_full_block_once(net: RouterNet) -> None:
    times, tail_tokens = await _herd(net, "prefix")
    assert 1.0 <= times <= COMPUTED_MAX
    assert tail_tokens <= HERD * 64  # less than a block each: the price of exactness


@pytest.mark.slow
async def test_the_control_least_conn_computes_them_on_every_replica(net: RouterNet) -> None:
    times, _ = await _herd(net, "least_conn")
    assert times > REPLICAS - 0.5


async def _hot(net: RouterNet, policy: str) -> tuple[float, float]:
    """Mean over time of max/mean in flight once the prefix is warm, and the cached-token share."""
    timed = TimedConfig(prefill_tokens_per_s=20_000, decode_tokens_per_s=40, block_bytes=256)
    async with four_replicas(timed) as replicas:
        router = await net.router(*(found.url for found in replicas), policy=policy)
        dice, hot = random.Random(1), "the prefix that everybody wants " * 250
        await _answer(net, router, _ask(hot + "first"))
        samples: list[float] = []

        async def ask(number: int) -> int:
            await asyncio.sleep(number * 0.015)
            text = f"{hot}{number}" if dice.random() < 0.8 else f"{number} another one " * 250
            answered = await _answer(net, router, _ask(text, max_tokens=30))
            in_flight = [found.in_flight for found in router.replicas]
            if sum(in_flight) >= 6 * REPLICAS and number > 30:
                samples.append(max(in_flight) * REPLICAS / sum(in_flight))
            return answered

        tokens = sum(await asyncio.gather(*(ask(number) for number in range(200))))
        computed = sum(found.runner.stats()["prefill_tokens_total"] for found in replicas)
        assert len(samples) > 50
        return sum(samples) / len(samples), 1 - computed / tokens


@pytest.mark.slow
async def test_a_hot_prefix_overloads_no_replica_and_is_still_found(net: RouterNet) -> None:
    balance, cached = await _hot(net, "prefix")
    assert balance <= BALANCE_MAX
    assert cached > 0.6


@pytest.mark.slow
async def test_the_control_a_session_for_all_overloads_one(net: RouterNet) -> None:
    """What is never weighed against load: everybody to the one home of the prefix."""
    timed = TimedConfig(prefill_tokens_per_s=20_000, decode_tokens_per_s=40, block_bytes=256)
    async with four_replicas(timed) as replicas:
        router = await net.router(*(found.url for found in replicas), policy="session")
        request = _ask("hot " * 500, max_tokens=20).replace(
            b"Host: bul\r\n", b"Host: bul\r\nX-Session-Id: everybody\r\n"
        )
        asking = [asyncio.ensure_future(_answer(net, router, request)) for _ in range(30)]
        await until(lambda: sum(found.in_flight for found in router.replicas) == 30)
        assert max(found.in_flight for found in router.replicas) == 30
        await asyncio.gather(*asking)
