"""Who belongs to the region: static, self-registered and discovered replicas; and who does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bul.accounts.keys import hash_key
from bul.config import RouteConfig
from bul.errors import ConfigError
from bul.router.app import Router
from bul.router.http1 import Request
from bul.router.membership import Membership, resolve_name
from bul.service.auth import Gate
from bul.service.join import Joiner, make_epoch
from bul.testing.clock import ManualClock
from bul.testing.region_process import bul_process
from bul.testing.request_load import RequestLoad
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import answering, silent
from bul.testing.waiting import eventually, until

URL = "http://10.0.0.1:8002"


class Seen:
    """Members over nothing: what they would tell the router."""

    def __init__(self, **settings: Any) -> None:
        self.urls: Sequence[str] = ()
        self.reborn: list[str] = []
        self.silent: list[str] = []
        given = {"ttl_s": 5.0, "members_max": 3} | settings
        self.members = Membership(
            on_change=self._changed,
            on_reborn=self.reborn.append,
            on_silent=self.silent.append,
            **given,
        )

    def _changed(self, urls: Sequence[str]) -> None:
        self.urls = urls

    def say(self, now_s: float, url: str = URL, epoch: str = "1", **more: Any) -> int:
        request = Request(b"POST", b"/members", http10=False, keep_alive=True)
        request.body = json.dumps({"url": url, "epoch": epoch} | more).encode()
        return int(self.members.answer(request, now_s)[9:12])


def test_a_member_stays_while_it_says_so_and_is_out_at_its_deadline() -> None:
    seen = Seen()
    assert seen.say(0.0) == 200
    assert list(seen.urls) == [URL]
    assert seen.say(4.9) == 200
    seen.members.expire(9.89)
    assert list(seen.urls) == [URL]
    seen.members.expire(9.9)
    assert list(seen.urls) == []
    assert seen.silent == [URL]


def test_who_says_goodbye_or_is_here_by_other_means_is_not_silent() -> None:
    seen = Seen()
    seen.say(0.0)
    seen.say(0.1, leaving=True)
    seen.say(0.2)
    seen.members.set_static([URL])
    seen.members.expire(9.9)
    assert list(seen.urls) == [URL]
    assert seen.silent == []


def test_without_a_deadline_a_silent_one_would_stay() -> None:
    """The control of the one above."""
    seen = Seen(ttl_s=3600.0)
    seen.say(0.0)
    seen.members.expire(9.9)
    assert list(seen.urls) == [URL]


def test_a_new_life_takes_the_address_and_the_old_one_has_no_say_any_more() -> None:
    seen = Seen()
    assert seen.say(0.0, epoch="1") == 200
    assert seen.say(1.0, epoch="2") == 200
    assert seen.reborn == [URL]
    assert seen.say(1.1, epoch="1") == 409
    assert seen.say(1.2, epoch="1", leaving=True) == 409
    assert list(seen.urls) == [URL]
    assert seen.say(1.3, epoch="2", leaving=True) == 200
    assert list(seen.urls) == []


def test_an_older_clock_is_let_in_once_its_predecessor_is_silent() -> None:
    seen = Seen()
    seen.say(0.0, epoch="2")
    assert seen.say(1.0, epoch="1") == 409
    seen.members.expire(5.0)
    assert seen.say(5.0, epoch="1") == 200


def test_there_is_a_limit_and_it_is_free_again_when_one_leaves() -> None:
    seen = Seen()
    assert [seen.say(0.0, f"http://10.0.0.{n}:1") for n in range(1, 5)] == [200, 200, 200, 429]
    assert seen.say(0.1, "http://10.0.0.1:1") == 200
    assert seen.say(0.2, "http://10.0.0.2:1", leaving=True) == 200
    assert seen.say(0.3, "http://10.0.0.4:1") == 200
    assert len(seen.urls) == 3


@pytest.mark.parametrize(
    "word",
    [
        {"url": "https://10.0.0.1:1"},
        {"url": "http://10.0.0.1:1/path"},
        {"url": "http://10.0.0.1"},
        {"url": "http://a b:1"},
        {"url": "http://" + "a" * 300 + ":1"},
        {"url": "http://10.0.0.1:1\r\nx: y"},
        {"url": 1},
        {"epoch": ""},
        {"epoch": "x" * 65},
        {"more": 1},
    ],
)
def test_a_word_that_is_none_changes_nothing(word: dict[str, Any]) -> None:
    seen = Seen()
    assert seen.say(0.0, **({"url": URL} | word)) == 400
    assert list(seen.urls) == []


def test_all_sources_add_up_and_each_replica_counts_once() -> None:
    seen = Seen()
    seen.members.set_static(["http://10.0.0.9:1/", URL])
    seen.say(0.0)
    seen.members.set_resolved("name", [URL, "http://10.0.0.2:1"])
    assert list(seen.urls) == ["http://10.0.0.9:1", URL, "http://10.0.0.2:1"]
    seen.members.set_static([])
    seen.members.set_resolved("name", [])
    assert list(seen.urls) == [URL]
    seen.members.set_resolved("name", [f"http://10.0.1.{n}:1" for n in range(9)])
    assert len(seen.urls) == 1 + 3


def test_epochs_grow_with_the_clock() -> None:
    clock = ManualClock()
    first = make_epoch(clock)
    clock.advance(1.0)
    assert make_epoch(clock) > first


@pytest.mark.parametrize("url", ["", "ftp://x:1", "http://x", "http://x:1/path", "http://x:99999"])
def test_a_router_to_join_must_be_a_url(url: str) -> None:
    with pytest.raises(ConfigError):
        Joiner([url], epoch="1")


# Over real sockets.

KEYS = Gate({"operator": hash_key("op"), "alice": hash_key("al")})


@contextlib.asynccontextmanager
async def members_router(**settings: Any) -> AsyncIterator[Router]:
    def gate(headers: Any) -> bool:
        tenant = KEYS.tenant_of(headers)
        return tenant is not None and KEYS.may_see_totals(tenant)

    given = {"port": 0, "members": True, "probe_interval_s": 0.05} | settings
    router = Router(RouteConfig(**given), gate=gate)
    await router.start()
    try:
        yield router
    finally:
        await router.stop()


@pytest.mark.slow
async def test_a_replica_joins_is_used_and_leaves(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    async with members_router(member_ttl_s=0.4) as router:
        joiner = Joiner([router.url], epoch="1", secret="op")
        joiner.start(upstream.url)
        await until(lambda: len(router.ready) == 1)
        assert (await net.ask(router, post()))[0] == 200
        await asyncio.sleep(0.8)  # two deadlines long
        assert len(router.ready) == 1
        await joiner.leave()
        assert router.replicas == ()
        assert (await net.ask(router, post()))[0] == 503


@pytest.mark.slow
async def test_one_that_dies_without_a_word_is_out_after_its_deadline(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    async with members_router(member_ttl_s=0.4) as router:
        joiner = Joiner([router.url], epoch="1", secret="op")
        joiner.start(upstream.url)
        await until(lambda: len(router.replicas) == 1)
        joiner.member_of.clear()
        await joiner.leave()  # nobody is told: as if it had been killed
        assert len(router.replicas) == 1
        await until(lambda: router.replicas == (), timeout_s=5)
        assert router.members.expired == 1


@pytest.mark.slow
async def test_what_a_member_had_under_way_when_it_fell_silent_is_asked_elsewhere(
    net: RouterNet,
) -> None:
    """Its probes are answered, and nothing is known of how long an answer takes."""
    mute, good = await net.upstream(silent), await net.upstream(answering(b"ok"))
    settings: dict[str, Any] = {"member_ttl_s": 1.0, "policy": "round_robin"}
    async with members_router(replicas=(good.url,), **settings) as router:
        word = json.dumps({"url": mute.url, "epoch": "1"}).encode()
        key = b"Authorization: Bearer op\r\n"
        assert (await net.ask(router, post(word, path=b"/members", extra=key)))[0] == 200
        await until(lambda: len(router.ready) == 2)
        answers = await asyncio.gather(*(net.ask(router, post()) for _ in range(2)))
        assert [answer[::2] for answer in answers] == [(200, b"ok")] * 2
        assert len(mute.requests) == 1
        assert router.members.expired == 1


@pytest.mark.parametrize("secret", ["", "al", "wrong"])
async def test_a_wrong_key_is_refused(net: RouterNet, secret: str) -> None:
    async with members_router() as router:
        key = b"Authorization: Bearer %b\r\n" % secret.encode() if secret else b""
        body = json.dumps({"url": URL, "epoch": "1"}).encode()
        status, _, _ = await net.ask(router, post(body, path=b"/members", extra=key))
        assert status == 401
        assert router.replicas == ()


async def test_a_router_that_was_not_asked_to_takes_no_members(net: RouterNet) -> None:
    """The path is a replica's then, and there is none."""
    async with members_router(members=False) as router:
        body = json.dumps({"url": URL, "epoch": "1"}).encode()
        key = b"Authorization: Bearer op\r\n"
        status, _, _ = await net.ask(router, post(body, path=b"/members", extra=key))
        assert status == 503
        assert router.replicas == ()


@pytest.mark.slow
async def test_a_router_that_comes_later_is_joined_then(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    async with members_router() as first:
        port = int(first.url.rpartition(":")[2])
    joiner = Joiner([f"http://127.0.0.1:{port}"], epoch="1", secret="op")
    joiner.start(upstream.url)
    try:
        async with members_router(port=port) as second:
            await until(lambda: len(second.ready) == 1)
    finally:
        await joiner.leave()


class Names:
    """A name server: `found` is what it says, or raises."""

    def __init__(self) -> None:
        self.found: Sequence[str] | OSError = ()
        self.asked = 0

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("replicas.internal", 8002)
        self.asked += 1
        if isinstance(self.found, OSError):
            raise self.found
        return self.found

    async def again(self) -> None:
        asked = self.asked
        await until(lambda: self.asked >= asked + 2)


async def test_a_name_stands_for_as_many_replicas_as_it_has_addresses() -> None:
    names = Names()
    names.found = ["10.0.0.1", "10.0.0.2", "fd00::1"]
    config = RouteConfig(
        port=0, discover=("http://replicas.internal:8002",), discover_interval_s=0.05
    )
    router = Router(config, resolve=names.resolve)
    await router.start()
    try:

        def urls() -> list[str]:
            return sorted(replica.url for replica in router.replicas)

        await names.again()
        assert urls() == ["http://10.0.0.1:8002", "http://10.0.0.2:8002", "http://[fd00::1]:8002"]
        names.found = ["10.0.0.2", "10.0.0.3"]
        await names.again()
        assert urls() == ["http://10.0.0.2:8002", "http://10.0.0.3:8002"]
        for nothing in (OSError("no name server"), ()):
            names.found = nothing
            await names.again()
            assert urls() == ["http://10.0.0.2:8002", "http://10.0.0.3:8002"]
        assert router.discovery.failures >= 2
    finally:
        await router.stop()


async def test_the_systems_own_resolver_is_asked(net: RouterNet) -> None:
    assert "127.0.0.1" in await resolve_name("127.0.0.1", 80)
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(wait=False, discover=(f"http://localhost:{upstream.port}",))
    await until(lambda: len(router.ready) == 1)
    assert (await net.ask(router, post()))[0] == 200


@pytest.mark.slow
async def test_processes_join_one_leaves_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    fast = {"BUL_TIMED_DECODE_TOKENS_PER_S": "200"}
    async with contextlib.AsyncExitStack() as stack:
        flags = ["--port", "0", "--log-format", "json", "--members"]
        router = await stack.enter_async_context(bul_process(["route", *flags], tmp_path))
        url = (await router.wait_for("ready"))["url"]
        serve = ["serve", "--engine", "timed", "--port", "0", "--log-format", "json"]
        arguments = [*serve, "--join", url]
        replicas = [
            await stack.enter_async_context(bul_process(arguments, tmp_path, fast))
            for _ in range(2)
        ]
        for replica in replicas:
            await replica.wait_for("ready")

        async with RequestLoad(url, clients=1, max_tokens=1) as first:
            await eventually("an answer", lambda: first.answers > 0)
        async with RequestLoad(url, clients=6, max_tokens=8, stream_every=2) as load:
            await load.more(60)
            replicas[0].send(signal.SIGTERM)
            assert await replicas[0].ended() == 0
            await load.more(60)
        assert load.lost == []
