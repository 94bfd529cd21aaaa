"""More requests than the replicas have room for: they wait, in order, for a while, or hear 429."""

from __future__ import annotations

import asyncio
import json

import pytest

from bul.config import ServeConfig
from bul.router.limit import ConcurrencyLimit
from bul.testing.replica import running_replica
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import answering, silent
from bul.testing.waiting import until


def test_an_overload_takes_a_tenth_once_for_all_that_was_under_way() -> None:
    limit = ConcurrencyLimit(100)
    limit.overloaded(50)
    assert limit.now == pytest.approx(45)
    for _ in range(45):
        limit.overloaded(50)
    assert limit.now == pytest.approx(45)
    limit.overloaded(50)
    assert limit.now == pytest.approx(40.5)


def test_good_answers_under_load_raise_the_limit_again_up_to_its_most() -> None:
    limit = ConcurrencyLimit(10)
    limit.overloaded(10)
    limit.good(1)
    assert limit.now == pytest.approx(9)
    for _ in range(9):
        limit.good(9)
    assert 9.9 < limit.now <= 10
    for _ in range(99):
        limit.good(9)
    assert limit.now == 10


def test_a_late_answer_leaves_as_many_as_would_have_been_in_time() -> None:
    limit = ConcurrencyLimit(100)
    for wanted in (50, 25, 12.625):
        limit.late(100, 1 / 8)
        assert limit.now == pytest.approx(wanted)
        for _ in range(int(limit.now)):
            limit.late(100, 1 / 8)  # all were sent under the old limit
    limit.late(10, 0.99)
    assert limit.now == pytest.approx(11 * 0.99)


def test_what_a_replica_tells_of_its_slots_is_where_its_limit_begins() -> None:
    limit = ConcurrencyLimit(256, per_slot=2.0, has_target=True)
    limit.told(4)
    assert limit.now == 8
    for _ in range(99):
        limit.good(8)
    assert limit.now > 15
    limit.told(4)  # nothing new
    assert limit.now > 15
    for _ in range(200):
        limit.late(20, 0.01)
    assert limit.now == 4
    limit.told(8)
    assert limit.now == 16


def test_without_a_target_that_limit_only_comes_back_and_zero_believes_nobody() -> None:
    limit = ConcurrencyLimit(256, per_slot=2.0)
    limit.told(4)
    limit.overloaded(8)
    for _ in range(99):
        limit.good(8)
    assert limit.now == 8
    deaf = ConcurrencyLimit(256)
    deaf.told(4)
    assert deaf.now == 256


async def test_the_slots_come_with_the_probes(net: RouterNet) -> None:
    async with running_replica(ServeConfig(port=0, slots=3)) as replica:
        router = await net.router(replica.url)
        assert router.replicas[0].limit.now == 6
        router = await net.router(replica.url, in_flight_per_slot=0)
        assert router.replicas[0].limit.now == 256


def test_the_limit_never_falls_below_one() -> None:
    limit = ConcurrencyLimit(2)
    for _ in range(50):
        limit.overloaded(1)
    assert limit.now == 1


@pytest.mark.parametrize(("most", "seen"), [(2, 2), (256, 12)])
async def test_requests_wait_for_room_and_all_are_answered(
    net: RouterNet, most: int, seen: int
) -> None:
    """With the limit of 256 as the control: without one, all twelve are there at once."""
    upstream = await net.upstream(answering(b"ok", delay_s=0.03))
    router = await net.router(upstream, in_flight_max=most)
    answers = await asyncio.gather(*(net.ask(router, post()) for _ in range(12)))
    assert {status for status, _, _ in answers} == {200}
    assert upstream.in_flight_max == seen
    assert router.queued == 12 - seen
    assert len(router.waiting) == 0


async def test_a_full_line_turns_the_next_one_away_at_once(net: RouterNet) -> None:
    upstream = await net.upstream(silent)
    router = await net.router(upstream, in_flight_max=1, queue_max=1)
    for waiting in (0, 1):
        client = await net.client(router)
        await client.send(post())
        await until(lambda: upstream.in_flight == 1)
        await until(lambda expected=waiting: len(router.waiting) == expected)  # type: ignore[misc] # mypy cannot infer a default's type in a lambda
    status, headers, body = await net.ask(router, post())
    assert status == 429
    assert 1 <= int(headers[b"retry-after"]) <= 30
    assert json.loads(body)["error"]["code"] == "overloaded"


async def test_who_waits_too_long_is_told_when_to_come_again(net: RouterNet) -> None:
    upstream = await net.upstream(silent)
    router = await net.router(upstream, in_flight_max=1, queue_deadline_s=0.1)
    client = await net.client(router)
    await client.send(post())
    await until(lambda: upstream.in_flight == 1)
    assert (await net.ask(router, post()))[0] == 429
    assert router.shed == 1
    assert len(router.waiting) == 0


async def test_who_leaves_the_line_is_not_sent(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok", delay_s=0.2))
    router = await net.router(upstream, in_flight_max=1)
    first, second = await net.client(router), await net.client(router)
    await first.send(post())
    await until(lambda: upstream.in_flight == 1)
    await second.send(post())
    await until(lambda: len(router.waiting) == 1)
    second.close()
    await until(lambda: len(router.waiting) == 0)
    assert (await first.answer())[0] == 200
    assert len(upstream.requests) == 1


async def test_a_429_lowers_the_replicas_limit_and_another_one_answers(net: RouterNet) -> None:
    busy = await net.upstream(answering(b"busy", status=b"429 Too Many Requests"))
    router = await net.router(busy, await net.upstream(answering(b"ok")))
    answers = [await net.ask(router, post()) for _ in range(4)]
    assert {body for _, _, body in answers} == {b"ok"}
    assert router.replicas[0].limit.now == 1
    assert router.replicas[1].limit.now == 256
    assert router.replicas[0].state == "ready"


async def test_a_late_first_byte_lowers_the_limit_when_there_is_a_target(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok", delay_s=0.1))
    for target_s, lowered in ((0.02, True), (0.0, False)):
        router = await net.router(upstream, first_byte_target_s=target_s)
        await net.ask(router, post())
        assert (router.replicas[0].limit.now < 256) is lowered
