"""Nobody is ready, but somebody may be in a moment; and time-outs that our own standstill made."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bul.router.app import Router
from bul.router.health import LATE, TIMED_OUT, Prober, probe
from bul.router.replica import DOWN, READY, UNKNOWN, Replica
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import FakeUpstream, answering
from bul.testing.waiting import until


class SleepingUpstream(FakeUpstream):
    """The kernel takes its connections; it answers none until `wake`."""

    def __init__(self) -> None:
        super().__init__(answering(b"awake"))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    async def wake(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._socket)


@pytest.fixture
async def sleeping() -> AsyncIterator[SleepingUpstream]:
    upstream = SleepingUpstream()
    yield upstream
    await upstream.kill()
    upstream._socket.close()


async def _asked_while_asleep(
    net: RouterNet, router: Router, upstream: SleepingUpstream
) -> tuple[int, dict[bytes, bytes], bytes]:
    asking = asyncio.create_task(net.ask(router, post()))
    await until(lambda: len(router.waiting) == 1)
    await upstream.wake()
    return await asking


async def test_before_the_first_probe_is_answered_requests_wait_in_line(
    net: RouterNet, sleeping: SleepingUpstream
) -> None:
    router = await net.router(sleeping, wait=False, probe_timeout_s=60)
    assert router.replicas[0].state == UNKNOWN
    status, _, body = await _asked_while_asleep(net, router, sleeping)
    assert (status, body) == (200, b"awake")


async def test_while_all_are_silent_requests_wait_for_the_first_that_answers(
    net: RouterNet, sleeping: SleepingUpstream
) -> None:
    router = await net.router(sleeping, wait=False, probe_timeout_s=0.05)
    await until(lambda: router.replicas[0].state == DOWN)
    status, _, body = await _asked_while_asleep(net, router, sleeping)
    assert (status, body) == (200, b"awake")


async def test_who_waited_in_vain_is_told_that_nobody_is_ready(
    net: RouterNet, sleeping: SleepingUpstream
) -> None:
    router = await net.router(sleeping, wait=False, probe_timeout_s=60, queue_deadline_s=0.1)
    status, headers, body = await net.ask(router, post())
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert b"no_replica" in body
    assert (router.refused, router.shed) == (1, 0)


async def test_the_control_nobody_waits_for_what_refuses_connections(net: RouterNet) -> None:
    upstream = await net.upstream(answering(b"ok"))
    router = await net.router(upstream, queue_deadline_s=3600)
    await upstream.kill()
    await until(lambda: router.replicas[0].state == DOWN)
    status, _, body = await net.ask(router, post())
    assert status == 503
    assert b"no_replica" in body


def _stand_still(seconds: float) -> None:
    """Keep the loop from running."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


async def _probed(upstream: SleepingUpstream, *, still_s: float) -> str:
    probing = asyncio.create_task(probe(Replica(upstream.url, lambda: None), 0.1))
    await asyncio.sleep(0)
    _stand_still(still_s)
    return await probing


async def test_a_probe_that_ran_out_while_we_stood_still_says_nothing(
    sleeping: SleepingUpstream,
) -> None:
    assert await _probed(sleeping, still_s=0.5) == LATE


async def test_the_control_one_that_ran_out_while_we_ran_does(sleeping: SleepingUpstream) -> None:
    with contextlib.suppress(AssertionError):  # a busy machine may stand still by itself
        for _ in range(20):
            assert await _probed(sleeping, still_s=0.0) == LATE
        pytest.fail("never timed out")
    prober = _prober(READY)
    prober.saw(TIMED_OUT)
    prober.saw(TIMED_OUT)
    assert prober._replica.state == DOWN


def _prober(state: str) -> Prober:
    prober = Prober(
        Replica("http://127.0.0.1:1", lambda: None), interval_s=1, timeout_s=1, now_s=lambda: 0.0
    )
    prober.saw(state)
    return prober


def test_any_number_of_late_probes_leaves_a_replica_as_it_was() -> None:
    prober = _prober(READY)
    for _ in range(5):
        prober.saw(LATE)
    assert prober._replica.state == READY


@pytest.mark.parametrize("turns", range(5))
async def test_dialling_gets_a_second_chance_after_we_stood_still(
    net: RouterNet, turns: int
) -> None:
    """At whatever turn of the loop that happens; without the second chance one of them fails."""
    upstream = await net.upstream(answering(b"ok"))
    settings: dict[str, Any] = {"connect_timeout_s": 0.1, "retry_share": 0.0, "retries_at_least": 0}
    router = await net.router(upstream, probe_interval_s=60, **settings)
    asking = asyncio.create_task(net.ask(router, post()))
    while not router.replicas[0].in_flight:  # noqa: ASYNC110  # single turns are meant
        await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    _stand_still(0.5)
    status, _, body = await asking
    assert (status, body) == (200, b"ok")
    assert router.replicas[0].failures == 0
