"""What replicas tell of their caches: believed while it is fresh and whole, and made good after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable

import pytest

from bul.accounts.keys import hash_key
from bul.config import KVCacheConfig, RouteConfig, ServeConfig
from bul.router.app import Router
from bul.router.events import STALE_S, Follower
from bul.router.replica import Replica
from bul.router.residency import COLD_S_MAX, GRACE_S, Residency
from bul.testing.replica import ReplicaUnderTest, running_replica
from bul.testing.router_net import RouterNet, post
from bul.testing.tcp_proxy import FaultProxy, Faults
from bul.testing.upstreams import answering, raw
from bul.testing.waiting import until

SMALL = KVCacheConfig(max_tokens=4096)


def _chat(number: int, words: int = 300) -> bytes:
    text = f"conversation {number} " * words
    message = {"role": "user", "content": text}
    body = {"model": "bul-timed", "messages": [message], "max_tokens": 2}
    return post(json.dumps(body).encode())


# What a replica's own word does to the router's belief.


def test_told_prefixes_count_and_sent_ones_only_while_they_are_being_computed() -> None:
    residency = Residency(100)
    residency.add([1, 2, 3], 10.0)
    residency.computed([1, 2, 3], 10.5)
    assert residency.matched([1, 2, 3], 11.0) == residency.warm([1, 2, 3]) == 3
    residency.told = {1: 64}
    assert residency.matched([1, 2, 3], 11.0) == 3  # it may not have told yet
    assert residency.matched([1, 2, 3], 10.5 + GRACE_S) == 1
    residency.add([1, 2, 3], 12.0)
    assert residency.matched([1, 2, 3], 13.0) == 3
    assert residency.warm([1, 2, 3]) == 1
    assert residency.matched([1, 2, 3], 12.0 + COLD_S_MAX) == 1
    residency.drop([1, 2, 3])
    residency.told = None
    assert residency.matched([1, 2, 3], 13.0) == 0


# Over real sockets.


class Watched:
    """A replica behind a spoiling proxy, and a follower of it."""

    def __init__(self, replica: ReplicaUnderTest, proxy: FaultProxy, follower: Follower) -> None:
        self.replica = replica
        self.proxy = proxy
        self.follower = follower
        self.answers = 0

    async def ask(self, number: int) -> None:
        """A request straight to the replica: nobody dispatched it."""
        assert b" 200 " in (await self.replica.raw(_close(_chat(number))))[:20]

    def truth(self) -> dict[int, int]:
        return self.replica.events.told

    def agrees(self) -> bool:
        return self.follower.fresh and self.follower.held.hints == self.truth()


def _close(request: bytes) -> bytes:
    return request.replace(b"Host: bul\r\n", b"Host: bul\r\nConnection: close\r\n", 1)


@contextlib.asynccontextmanager
async def watched(*, detect_gaps: bool = True) -> AsyncIterator[Watched]:
    loop = asyncio.get_running_loop()
    async with (
        running_replica(cache_config=SMALL) as replica,
        FaultProxy("127.0.0.1", replica.port) as proxy,
    ):
        seen = Replica(proxy.url, lambda: None, residency_tokens=4096)
        seen.set_state("ready")
        follower = Follower(seen, now_s=loop.time, detect_gaps=detect_gaps)
        follower.start()
        try:
            yield Watched(replica, proxy, follower)
        finally:
            await follower.stop()


async def test_what_comes_and_goes_in_ram_is_known_within_a_moment() -> None:
    async with watched() as pair:
        await until(lambda: pair.follower.fresh)
        for number in range(6):
            await pair.ask(number)
        await until(pair.agrees)
        assert len(pair.truth()) > 10
        everything = set(pair.truth())
        for number in range(6, 40):  # more than fits
            await pair.ask(number)
        await until(pair.agrees)
        assert not everything <= set(pair.truth())
        assert pair.follower.held.gaps == 0
        await pair.replica.cache.clear()
        await until(lambda: pair.agrees() and not pair.truth())


async def test_a_cut_connection_is_taken_up_where_it_ended() -> None:
    async with watched() as pair:
        await pair.ask(1)
        await until(pair.agrees)
        for number in range(2, 5):
            pair.proxy.cut()
            await pair.ask(number)
            await until(pair.agrees)
        assert pair.follower.held.snapshots == 1


@pytest.mark.slow
async def test_after_a_stall_nothing_is_believed_and_then_everything_again() -> None:
    async with watched() as pair:
        await pair.ask(1)
        await until(pair.agrees)
        residency = pair.follower._replica.residency
        pair.proxy.stall()
        await pair.ask(2)
        pair.follower.check()
        assert residency.told is not None  # not yet
        await until(lambda: not pair.follower.fresh, timeout_s=STALE_S + 5)
        pair.follower.check()
        assert residency.told is None
        pair.proxy.heal()
        await until(pair.agrees)
        assert residency.told == pair.truth()


async def _lose_an_eviction(pair: Watched) -> None:
    """A line that says what is gone is eaten by the network, whole, framing intact."""
    await pair.ask(1)
    await until(pair.agrees)
    pair.proxy.to_client = Faults(swallow=True)
    await pair.replica.cache.clear()
    await until(lambda: pair.proxy.swallowed > 0)
    pair.proxy.heal()


async def test_a_swallowed_line_is_noticed_and_made_good() -> None:
    async with watched() as pair:
        await _lose_an_eviction(pair)
        await until(pair.agrees)
        assert pair.truth() == {}
        assert pair.follower.held.gaps == 1


async def test_the_control_without_gap_detection_believes_what_is_gone() -> None:
    async with watched(detect_gaps=False) as pair:
        await _lose_an_eviction(pair)
        await pair.ask(2)
        before = pair.follower.lines
        await until(lambda: pair.follower.lines > before)
        assert pair.follower.fresh
        assert not pair.agrees()
        assert set(pair.follower.held.hints) - set(pair.truth())


@pytest.mark.slow
async def test_whatever_the_network_does_the_belief_ends_up_right() -> None:
    dice = random.Random(5)
    faults: list[Callable[[FaultProxy], None]] = [
        lambda proxy: proxy.cut(),
        lambda proxy: proxy.reset(),
        lambda proxy: setattr(proxy, "to_client", Faults(swallow=True)),
        lambda proxy: setattr(proxy, "to_client", Faults(delay_s=0.05)),
        lambda proxy: setattr(proxy, "to_client", Faults(flip_at=700)),
        lambda proxy: setattr(proxy, "to_client", Faults(cut_at=900)),
    ]
    async with watched() as pair:
        for number in range(60):
            dice.choice(faults)(pair.proxy)
            await pair.ask(dice.randrange(30))
            if number % 6 == 5:
                pair.proxy.heal()
                pair.proxy.cut()
                await until(pair.agrees)


async def test_a_restarted_replica_is_believed_to_hold_nothing_of_its_last_life(
    net: RouterNet,
) -> None:
    async with running_replica() as first:
        router = await net.router(first.url)
        await until(lambda: router.followers[first.url].fresh)
        await net.ask(router, _chat(1))
        follower = router.followers[first.url]
        await until(lambda: len(follower.held.hints) > 0)
        [seen] = router.replicas
        assert seen.residency.matched(list(follower.held.hints)[:1]) == 1
        known, port = list(first.events.told), first.port
    async with running_replica(ServeConfig(port=port)):
        await until(lambda: follower.fresh and not follower.held.hints)
        assert seen.residency.matched(known[:1]) == 0


KEYS = {"operator": hash_key("op"), "alice": hash_key("al")}


@pytest.mark.parametrize(
    ("secret", "state"), [("op", "fresh"), ("al", "refused"), ("wrong", "refused"), ("", "refused")]
)
async def test_only_the_operators_key_opens_the_events(
    net: RouterNet, secret: str, state: str
) -> None:
    async with running_replica(keys=KEYS) as replica:
        router = await net.router(replica.url, operator_secret=secret)
        follower = router.followers[replica.url]
        await until(lambda: follower.fresh or follower.refused)
        _, _, page = await net.ask(router, b"GET /replicas HTTP/1.1\r\nHost: bul\r\n\r\n")
        assert json.loads(page)["replicas"][0]["events"] == state


async def test_hints_of_a_region_tell_nobody_without_its_secret_what_was_asked() -> None:
    secret = ServeConfig(port=0, cache_secret="region")
    async with running_replica(secret) as keyed, running_replica() as plain:
        for replica in (keyed, plain):
            assert b" 200 " in (await replica.raw(_close(_chat(1))))[:20]
        assert keyed.events.told
        assert not set(keyed.events.told) & set(plain.events.told)


async def test_a_replica_without_events_is_known_by_what_was_sent(net: RouterNet) -> None:
    foreign = await net.upstream(answering(b"{}"))
    router = await net.router(foreign)
    follower = router.followers[foreign.url]
    await until(lambda: follower.refused)
    await net.ask(router, _chat(1))
    [seen] = router.replicas
    assert seen.residency.told is None
    assert len(seen.residency) > 0


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\ndata: \n\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n",
        b"garbage\r\n\r\n",
        b"",
        b"x" * 300_000,
    ],
)
async def test_garbage_for_events_is_no_belief_and_no_harm(net: RouterNet, words: bytes) -> None:
    upstream = await net.upstream(answering(b"ok"))
    upstream.events = raw(words)
    router = await net.router(upstream)
    follower = router.followers[upstream.url]
    await until(lambda: follower.failures > 0)
    assert not follower.fresh
    assert (await net.ask(router, _chat(1)))[0] == 200


async def test_a_router_that_comes_later_learns_what_others_had_sent(net: RouterNet) -> None:
    async with running_replica() as one, running_replica() as two:
        first = await net.router(one.url, two.url)
        homes = {}
        for number in range(8):
            _, headers, _ = await net.ask(first, _chat(number))
            homes[number] = headers[b"x-bul-replica"]
        second = await net.router(one.url, two.url)
        await until(lambda: all(found.fresh for found in second.followers.values()))
        held = sum(len(found.held.hints) for found in second.followers.values())
        assert held == len(one.events.told) + len(two.events.told) > 0
        for number in range(8):
            _, headers, _ = await net.ask(second, _chat(number))
            assert headers[b"x-bul-replica"] == homes[number]


async def test_a_router_without_events_does_not(net: RouterNet) -> None:
    """The control of the one above."""
    async with running_replica() as one, running_replica() as two:
        first = await net.router(one.url, two.url, block_events=False)
        homes = {}
        for number in range(8):
            _, headers, _ = await net.ask(first, _chat(number))
            homes[number] = headers[b"x-bul-replica"]
        second = await net.router(one.url, two.url, block_events=False)
        assert second.followers == {}
        await net.ask(second, _chat(99))  # so that the turns differ
        moved = 0
        for number in range(8):
            _, headers, _ = await net.ask(second, _chat(number))
            moved += headers[b"x-bul-replica"] != homes[number]
        assert moved > 0


def test_other_policies_follow_nobody() -> None:
    assert Router(RouteConfig(policy="least_conn")).followers == {}
