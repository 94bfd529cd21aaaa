"""A replica that freezes: its requests go to another one too; without that, users wait."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from bul.router.hedge import SEEN_MIN, FirstBytes
from bul.router.prompt import Prompt
from bul.router.replica import DOWN, READY, REMOVED, Replica
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import Behaviour, answering, raw, silent
from bul.testing.waiting import until

PROMPT = Prompt([], 100.0, may_repeat=True)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n"
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: bul\r\n\r\n"


async def begun(request: bytes, writer: asyncio.StreamWriter) -> None:
    """The head of an answer, which servers often send apart, and not its body."""
    await raw(HEAD, close=False)(request, writer)
    await silent(request, writer)


def _seen(times: int, waited_s: float, delay_min_s: float = 0.25) -> FirstBytes:
    found = FirstBytes(delay_min_s)
    kind = found.kind(PROMPT, 100.0)
    assert kind is not None
    for _ in range(times):
        kind.add(waited_s)
    return found


def _delay_s(found: FirstBytes, prompt: Prompt, to_compute: float) -> float:
    return found.delay_s(prompt, found.kind(prompt, to_compute))


def test_nothing_is_hedged_before_enough_answers_of_its_kind_were_seen() -> None:
    assert _delay_s(_seen(SEEN_MIN - 1, 0.01), PROMPT, 100.0) == float("inf")
    assert _delay_s(_seen(SEEN_MIN, 0.01), PROMPT, 100.0) == 0.25
    assert _delay_s(_seen(SEEN_MIN, 0.01), PROMPT, 9000.0) == float("inf")


def test_slow_kinds_wait_longer_and_what_may_not_repeat_is_never_hedged() -> None:
    assert 1.0 < _delay_s(_seen(100, 1.0), PROMPT, 100.0) < 4.0
    assert _delay_s(_seen(100, 0.01), Prompt([], 100.0), 100.0) == float("inf")
    assert _delay_s(_seen(100, 0.01, 0.0), PROMPT, 100.0) == float("inf")


async def _freeze(
    net: RouterNet, delay_min_s: float, behaviour: Behaviour
) -> tuple[list[int], float, int]:
    """Statuses and the longest wait, once one of two replicas freezes; and hedges won."""
    first, second = [await net.upstream(answering(b"ok")) for _ in range(2)]
    settings: dict[str, Any] = {"policy": "round_robin", "response_timeout_s": 3.0}
    router = await net.router(first, second, hedge_delay_min_s=delay_min_s, **settings)
    for _ in range(SEEN_MIN + 4):
        await net.ask(router, post())
    first.behaviour = behaviour
    began_s = time.monotonic()
    answers = await asyncio.gather(*(net.ask(router, post()) for _ in range(4)))
    return [a[0] for a in answers], time.monotonic() - began_s, router.hedges_won


@pytest.mark.parametrize("behaviour", [silent, begun])
async def test_a_silent_replicas_requests_are_answered_by_another_one(
    net: RouterNet, behaviour: Behaviour
) -> None:
    statuses, waited_s, won = await _freeze(net, 0.1, behaviour)
    assert statuses == [200] * 4
    assert won == 2
    assert waited_s < 2.5


async def test_the_control_without_hedging_waits_for_the_timeout(net: RouterNet) -> None:
    _, waited_s, won = await _freeze(net, 0.0, silent)
    assert won == 0
    assert waited_s > 2.5  # one time-out, which the hedged ones never see


@pytest.mark.parametrize(
    ("asked", "behaviour"), [(post(), begun), (MODELS, silent)], ids=["begun", "GET"]
)
async def test_what_one_that_is_out_has_not_answered_is_asked_elsewhere(
    net: RouterNet, asked: bytes, behaviour: Behaviour
) -> None:
    """At once, though nothing is known of how long such an answer takes."""
    first, second = await net.upstream(behaviour), await net.upstream(answering(b"ok"))
    router = await net.router(first, second, policy="round_robin", probe_interval_s=60.0)
    asking = [asyncio.create_task(net.ask(router, asked)) for _ in range(2)]
    await until(lambda: first.in_flight == 1)
    await asyncio.sleep(0.05)  # what it says has come by then
    router.replicas[0].set_state(DOWN)
    assert [answer[::2] for answer in await asyncio.gather(*asking)] == [(200, b"ok")] * 2
    assert [replica.in_flight for replica in router.replicas] == [0, 0]


async def test_an_answer_that_ends_after_a_second_replica_was_asked_is_the_answer(
    net: RouterNet,
) -> None:
    go_on = asyncio.Event()

    async def haltingly(request: bytes, writer: asyncio.StreamWriter) -> None:
        await raw(HEAD + b"o", close=False)(request, writer)
        await go_on.wait()
        await raw(b"k", close=False)(request, writer)

    first, second = [await net.upstream(answering(b"ok")) for _ in range(2)]
    router = await net.router(first, second, policy="round_robin", hedge_delay_min_s=0.1)
    for _ in range(SEEN_MIN + 4):
        await net.ask(router, post())
    first.behaviour, second.behaviour = haltingly, silent
    asking = asyncio.create_task(net.ask(router, post()))
    await until(lambda: first.in_flight == second.in_flight == 1)
    go_on.set()
    assert (await asking)[::2] == (200, b"ok")
    await until(lambda: second.hung_up == 1)
    assert [replica.in_flight for replica in router.replicas] == [0, 0]


def test_one_that_was_down_when_it_was_removed_is_out_and_one_that_leaves_is_not() -> None:
    lost, leaving = (Replica("http://127.0.0.1:1", lambda: None) for _ in range(2))
    for state in (READY, DOWN, READY, DOWN, REMOVED):
        lost.set_state(state)
        assert lost.is_out == (state != READY)
    for state in (READY, REMOVED):
        leaving.set_state(state)
        assert not leaving.is_out
