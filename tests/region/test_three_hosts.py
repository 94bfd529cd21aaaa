"""The guide's picture: bul1, bul2, bul3 on three hosts; one is pulled out and put back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bul.accounts.keys import hash_key
from bul.testing.net_hosts import Bridge, net_hosts
from bul.testing.region_process import BulProcess, bul_process
from bul.testing.request_load import RequestLoad
from bul.testing.waiting import eventually

pytestmark = pytest.mark.slow

KEY = "bul-the-operators"
FAST = {"BUL_TIMED_DECODE_TOKENS_PER_S": "200", "BUL_SERVE_JOIN_SECRET": KEY}
PORT = 8002
"""Free on every host: nobody else is there."""
NAMES = ("bul1", "bul2", "bul3")
DEADLINE_S = 5.0
"""Two silent probes of 1 s, half a second between them, and a second request for who waits."""
EVEN = 1.3


class Hosts:
    """A router on the bridge, and a replica on each host."""

    def __init__(self, bridge: Bridge, url: str, router: BulProcess) -> None:
        self.bridge = bridge
        self.url = url
        self.router = router

    def load(self) -> RequestLoad:
        return RequestLoad(self.url, clients=6, max_tokens=6, stream_every=2, key=KEY)

    async def evenness(self, requests: int) -> float:
        """Max/mean of the answers by replica."""
        async with self.load() as load:
            await load.more(requests)
        assert load.lost == []
        return max(load.by_replica.values()) / (sum(load.by_replica.values()) / len(NAMES))

    async def wait_ready(self, replicas: int) -> None:
        """Until so many take requests, however they are asked."""

        async def all_there() -> bool:
            async with RequestLoad(self.url, clients=6, max_tokens=1, key=KEY) as load:
                with contextlib.suppress(AssertionError):
                    await load.more(12, deadline_s=5)
            return not load.lost and len(load.by_replica) == replicas

        await eventually(f"{replicas} replicas answer", all_there)


@contextlib.asynccontextmanager
async def three_hosts(folder: Path, *flags: str) -> AsyncIterator[Hosts]:
    keys, serve = f'operator = "{hash_key(KEY)}"', 'cache_secret = "of the region"'
    (folder / "bul.toml").write_text(f"[keys]\n{keys}\n[serve]\n{serve}\n")
    async with contextlib.AsyncExitStack() as stack:
        bridge = stack.enter_context(net_hosts(*NAMES))
        route = ["route", "--host", bridge.address, "--port", "0", "--members", *flags]
        route += ["--log-format", "json", "--policy", "least_conn"]
        router = await stack.enter_async_context(bul_process(route, folder))
        url = (await router.wait_for("ready"))["url"]
        replica = ["serve", "--engine", "timed", "--host", "0.0.0.0"]
        replica += ["--port", str(PORT), "--join", url]
        started = [
            stack.enter_async_context(
                bul_process(
                    [*replica, "--log-format", "json"], folder, FAST, prefix=bridge[name].prefix
                )
            )
            for name in NAMES
        ]
        replicas = [await one for one in started]
        await asyncio.gather(*(found.wait_for("ready") for found in replicas))
        hosts = Hosts(bridge, url, router)
        await hosts.wait_ready(3)
        yield hosts


async def test_a_host_is_pulled_out_and_put_back_and_the_load_is_even_again(
    tmp_path: Path,
) -> None:
    """The control runs beside it: a client that asks the host itself, with nobody to eject it."""
    async with three_hosts(tmp_path) as hosts:
        assert await hosts.evenness(120) <= EVEN
        pulled = hosts.bridge["bul2"]
        direct = RequestLoad(
            f"http://{pulled.address}:{PORT}", clients=1, keep=False, pause_s=0.05, key=KEY
        )
        async with hosts.load() as load, direct as control:
            await load.more(60)
            assert control.lost == []
            pulled.unplug()
            pulled_s = time.monotonic()
            await eventually("the deadline", lambda: time.monotonic() - pulled_s > DEADLINE_S)
            lost_before = len(control.lost)
            load.by_replica.clear()
            await load.more(120)
            assert len(load.by_replica) == 2
            await control.more(1)
            assert len(control.lost) > lost_before
            pulled.plug()
            await load.more(60)
        assert load.lost == []
        await hosts.wait_ready(3)
        assert await hosts.evenness(120) <= EVEN
