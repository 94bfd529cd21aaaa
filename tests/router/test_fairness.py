"""Who waits is served by priority and by tokens; who has used its minute is told when to return."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from bul.config import KeyLimits
from bul.router.app import Router
from bul.router.http1 import Request
from bul.router.prompt import Prompt
from bul.router.quota import Charge, Flow, OverLimit, Quotas, priority_of
from bul.router.waiting import Place, WaitingLine
from bul.testing.replica import INSTANT, running_replica
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import answering
from bul.testing.waiting import until

NAMES = {b"Bearer bul-a": "alice", b"Bearer bul-b": "bob"}
FREE = KeyLimits()


def _tenant_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    return NAMES.get(dict(headers)[b"authorization"])


def _quotas(**limits: KeyLimits) -> Quotas:
    return Quotas(limits, _tenant_of)


def _request(key: bytes = b"Bearer bul-a", priority: bytes = b"") -> Request:
    request = Request(b"POST", b"/v1/chat/completions", http10=False, keep_alive=True)
    request.authorization = [key]
    if priority:
        request.lines = [b"X-Bul-Priority: %b\r\n" % priority]
    return request


def _prompt(tokens: float, most: int) -> Prompt:
    return Prompt([], tokens, max_tokens=most)


# The line, on its own: anything hashable can stand in it.


def _line(*joining: tuple[str, Place], most: int = 100, fair: bool = True) -> list[str]:
    """Who is served, in order, of those that came in this order."""
    line = WaitingLine(most, 1.0, lambda: 0.0, fair=fair)
    untyped: Any = line
    for name, place in joining:
        untyped.join(name, place)
    return [untyped.next() for _ in range(len(line))]


def test_interactive_goes_before_batch_and_batch_before_prefetch() -> None:
    flow = Flow("a", FREE)
    came = [(f"{rank}{i}", Place(rank, flow, 1.0)) for i in range(2) for rank in (2, 0, 1)]
    assert _line(*came) == ["00", "01", "10", "11", "20", "21"]


def _greedy_and_modest(greedy: int, modest: int) -> list[tuple[str, Place]]:
    big, small = Flow("greedy", FREE), Flow("modest", FREE)
    came = [(f"g{i}", Place(0, big, 100.0)) for i in range(greedy)]
    return came + [(f"m{i}", Place(0, small, 100.0)) for i in range(modest)]


def test_a_key_that_asks_for_much_does_not_starve_another() -> None:
    served = _line(*_greedy_and_modest(50, 5))
    assert [name for name in served[:10] if name[0] == "m"] == [f"m{i}" for i in range(5)]


def test_the_control_first_come_first_served_starves_it() -> None:
    served = _line(*_greedy_and_modest(50, 5), fair=False)
    assert [name for name in served[:50] if name[0] == "m"] == []


def test_turns_are_by_tokens_and_by_share() -> None:
    long, short, twice = Flow("l", FREE), Flow("s", FREE), Flow("t", KeyLimits(share=2.0))
    came = [(f"l{i}", Place(0, long, 400.0)) for i in range(40)]
    came += [(f"s{i}", Place(0, short, 100.0)) for i in range(40)]
    came += [(f"t{i}", Place(0, twice, 100.0)) for i in range(80)]
    counts = Counter(name[0] for name in _line(*came, most=1000)[:65])
    assert counts["s"] == pytest.approx(4 * counts["l"], abs=4)
    assert counts["t"] == pytest.approx(2 * counts["s"], abs=4)


def test_staying_away_gathers_no_credit() -> None:
    busy, idle = Flow("b", FREE), Flow("i", FREE)
    busy.served = 1e6
    came = [(f"b{i}", Place(0, busy, 100.0)) for i in range(10)]
    came += [(f"i{i}", Place(0, idle, 100.0)) for i in range(10)]
    assert Counter(name[0] for name in _line(*came)[:10]) == {"b": 5, "i": 5}


def test_a_full_line_turns_away_the_last_of_the_longest_in_the_lowest_class() -> None:
    line: Any = WaitingLine(4, 1.0, lambda: 0.0)
    greedy, modest = Flow("g", FREE), Flow("m", FREE)
    for i in range(4):
        assert line.join(f"g{i}", Place(0, greedy, 1.0)) is None
    assert line.join("g4", Place(0, greedy, 1.0)) == "g4"
    assert line.join("m0", Place(0, modest, 1.0)) == "g3"
    assert line.join("m1", Place(0, modest, 1.0)) == "g2"
    assert line.join("m2", Place(0, modest, 1.0)) == "m2"  # two and two is fair
    assert line.join("b0", Place(1, modest, 1.0)) == "b0"
    line.leave("g0")
    assert line.join("b0", Place(1, modest, 1.0)) is None
    assert line.join("m2", Place(0, modest, 1.0)) == "b0"
    assert len(line) == 4


# Limits per minute.


def test_requests_and_tokens_have_a_bucket_each_a_minute_deep() -> None:
    quotas = _quotas(alice=KeyLimits(requests_per_minute=2, tokens_per_minute=1000))
    for _ in range(2):
        assert quotas.admit(_request(), _prompt(100, 100), 0.0) is not None
    with pytest.raises(OverLimit, match=r"2 requests a minute.*30 s") as over:
        quotas.admit(_request(), _prompt(100, 100), 0.0)
    assert over.value.retry_after_s == 30
    assert quotas.admit(_request(), _prompt(300, 300), 30.0) is not None  # 600 of 1,000 are left
    with pytest.raises(OverLimit, match="tokens"):
        quotas.admit(_request(), _prompt(600, 400), 60.0)
    assert quotas.admit(_request(b"Bearer bul-b"), _prompt(600, 400), 60.0) is None
    assert quotas.admit(_request(b"Bearer x"), _prompt(600, 400), 60.0) is None


def test_more_than_a_minutes_worth_is_served_from_a_full_bucket_and_paid_off() -> None:
    quotas = _quotas(alice=KeyLimits(tokens_per_minute=600))
    assert quotas.admit(_request(), _prompt(1000, 200), 0.0) is not None
    with pytest.raises(OverLimit) as over:
        quotas.admit(_request(), _prompt(0, 60), 0.0)
    assert over.value.retry_after_s == 66


def test_an_answer_shorter_than_it_might_have_been_gives_the_rest_back() -> None:
    quotas = _quotas(alice=KeyLimits(tokens_per_minute=1000))
    charge = quotas.admit(_request(), _prompt(100, 900), 0.0)
    assert isinstance(charge, Charge)
    charge.saw(b'... "usage":{"prompt_tokens":120,"compl')
    charge.saw(b'etion_tokens":30,"total_tokens":150}}')
    charge.settle()
    assert quotas.admit(_request(), _prompt(50, 800), 0.0) is not None


def test_a_key_cannot_be_more_urgent_than_it_may() -> None:
    quotas = _quotas(alice=KeyLimits(priority="batch"))
    for said, rank in ((b"", 1), (b"interactive", 1), (b"prefetch", 2)):
        request = _request(priority=said)
        quotas.admit(request, _prompt(1, 1), 0.0)
        assert priority_of(request) == rank
        assert sum(b"riority" in line for line in request.lines) == 1
    assert priority_of(_request()) == 0


# The same through a router.


async def test_who_has_used_its_minute_gets_a_429_that_says_so(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    quotas = _quotas(alice=KeyLimits(requests_per_minute=1))
    router = await net.router(upstream, quotas=quotas)
    ask = post(extra=b"Authorization: Bearer bul-a\r\n")
    assert (await net.ask(router, ask))[0] == 200
    status, headers, body = await net.ask(router, ask)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (429, "rate_limit_exceeded")
    assert "'alice' may use 1 requests a minute" in error["message"]
    assert 1 <= int(headers[b"retry-after"]) <= 60
    other = post(extra=b"Authorization: Bearer bul-b\r\n")
    assert (await net.ask(router, other))[0] == 200
    assert len(upstream.requests) == 2


async def _crowd(net: RouterNet, *, fair: bool) -> list[bytes]:
    """The order in which a replica for one at a time gets 30 of alice's requests and, coming
    last, three of bob's.
    """
    upstream = await net.upstream(answering(b"ok", delay_s=0.02))
    router = await net.router(upstream, quotas=_quotas(), in_flight_max=1, fair=fair)
    asking = []
    for number, key in enumerate([b"bul-a"] * 30 + [b"bul-b"] * 3):
        data = post(extra=b"Authorization: Bearer %b\r\n" % key)
        asking.append(asyncio.create_task(net.ask(router, data)))
        await until(lambda many=number: router.arrivals > many)  # type: ignore[misc] # mypy cannot infer a default's type in a lambda
    answers = await asyncio.gather(*asking)
    assert {answer[0] for answer in answers} == {200}
    return [b"b" if b"bul-b" in request else b"a" for request in upstream.requests]


async def test_the_last_to_come_is_not_the_last_to_be_served(net: RouterNet) -> None:
    order = await _crowd(net, fair=True)
    last = len(order) - 1 - order[::-1].index(b"b")
    assert order[last + 1 :].count(b"a") >= 10


async def test_the_control_without_fairness_it_is(net: RouterNet) -> None:
    assert (await _crowd(net, fair=False))[-3:] == [b"b"] * 3


async def _first_of_a_line(net: RouterNet, router: Router, *priorities: bytes) -> None:
    for waiting, priority in enumerate(priorities):
        client = await net.client(router)
        await client.send(post(extra=b"x-bul-priority: %b\r\n" % priority))
        await until(lambda many=waiting: router.arrivals > many)  # type: ignore[misc] # mypy cannot infer a default's type in a lambda


async def test_a_header_says_how_urgent_a_request_is(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok", delay_s=0.05))
    router = await net.router(upstream, in_flight_max=1)
    said = [b"batch", b"prefetch", b"batch", b"interactive"]
    await _first_of_a_line(net, router, *said)
    await until(lambda: len(upstream.requests) == 4)
    order = [
        request.split(b"x-bul-priority: ")[1].split(b"\r\n")[0] for request in upstream.requests
    ]
    assert order == [b"batch", b"interactive", b"batch", b"prefetch"]


async def test_a_replica_takes_the_three_words_and_no_other(net: RouterNet) -> None:
    async with running_replica(timed=INSTANT) as replica:
        router = await net.router(replica.url)
        body = b'{"model":"bul-timed","prompt":"a","max_tokens":1}'
        for word, status in ((b"batch", 200), (b"urgent", 400)):
            data = post(body, path=b"/v1/completions", extra=b"x-bul-priority: %b\r\n" % word)
            assert (await net.ask(router, data))[0] == status
