"""A replica that freezes: its requests go to another one too; without that, users wait."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bul.router.hedge import SEEN_MIN, FirstBytes
from bul.router.prompt import Prompt
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import answering, silent

PROMPT = Prompt([], 100.0, may_repeat=True)


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


async def _freeze(net: RouterNet, delay_min_s: float) -> tuple[list[int], float, int]:
    """Statuses and the longest wait, once one of two replicas says nothing; and hedges won."""
    first, second = [await net.upstream(answering(b"ok")) for _ in range(2)]
    settings: dict[str, Any] = {"policy": "round_robin", "response_timeout_s": 3.0}
    router = await net.router(first, second, hedge_delay_min_s=delay_min_s, **settings)
    for _ in range(SEEN_MIN + 4):
        await net.ask(router, post())
    first.behaviour = silent
    began_s = time.monotonic()
    answers = await asyncio.gather(*(net.ask(router, post()) for _ in range(4)))
    return [a[0] for a in answers], time.monotonic() - began_s, router.hedges_won


async def test_a_silent_replicas_requests_are_answered_by_another_one(net: RouterNet) -> None:
    statuses, waited_s, won = await _freeze(net, 0.1)
    assert statuses == [200] * 4
    assert won == 2
    assert waited_s < 2.5


async def test_the_control_without_hedging_waits_for_the_timeout(net: RouterNet) -> None:
    _, waited_s, won = await _freeze(net, 0.0)
    assert won == 0
    assert waited_s > 2.5  # one time-out, which the hedged ones never see
