"""Three hosts share one Valkey: what the first computes, the others find, behind one router."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from bul.accounts.keys import hash_key
from bul.testing.net_hosts import net_hosts
from bul.testing.region_process import bul_process
from bul.testing.request_load import RequestLoad
from bul.testing.valkey import running_valkey

pytestmark = pytest.mark.slow

KEY = "bul-the-operators"
NAMES = ("bul1", "bul2", "bul3")
PORT = 8002
SERVED = {
    "BUL_SERVE_JOIN_SECRET": KEY,
    "BUL_TIMED_TIME_SCALE": "0",
    # An engine that computes in no time never gains by loading.
    "BUL_CACHE_BREAK_EVEN": "false",
}


def write_settings(folder: Path) -> Path:
    keys, serve = f'operator = "{hash_key(KEY)}"', 'cache_secret = "of the region"'
    (folder / "bul.toml").write_text(f"[keys]\n{keys}\n[serve]\n{serve}\n")
    (folder / "key").write_text(KEY)
    return folder / "key"


async def test_a_replica_on_another_host_is_warm_from_what_the_first_host_computed(
    tmp_path: Path,
) -> None:
    key_file = write_settings(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        bridge = stack.enter_context(net_hosts(*NAMES))
        server = stack.enter_context(running_valkey(tmp_path / "valkey", host=bridge.address))
        route = ["route", "--host", bridge.address, "--port", "0", "--members"]
        router = await stack.enter_async_context(
            bul_process([*route, "--log-format", "json"], tmp_path)
        )
        router_url = (await router.wait_for("ready"))["url"]
        for name in NAMES:
            serve = ["serve", "--engine", "timed", "--host", "0.0.0.0", "--port", str(PORT)]
            serve += ["--join", router_url, "--log-format", "json", "--enable-persistence"]
            serve += ["--persistence-dir", str(tmp_path / f"disk-{name}")]
            environ = SERVED | {"BUL_CACHE_SHARED_URL": server.url}
            replica = await stack.enter_async_context(
                bul_process(serve, tmp_path, environ, prefix=bridge[name].prefix)
            )
            await replica.wait_for("ready")
        urls = [f"http://{bridge[name].address}:{PORT}" for name in NAMES]
        flags = ["--json", "--cold-replica", "--key-file", str(key_file)]
        flags += ["--at", urls[0], "--at", urls[1]]
        async with bul_process(["demo", *flags], tmp_path) as demo:
            assert await demo.ended(120) == 0, demo.errors
            (document,) = demo.events
        assert document["identical"] is True
        assert document["cold_replica"]["shared_hit_tokens"] >= 3 * 1152
        assert document["cold_replica"]["disk_hit_tokens"] == 0
        # And through the router, all three of them answer.
        async with RequestLoad(router_url, clients=6, max_tokens=1, key=KEY) as load:
            await load.more(30)
        assert load.lost == []
