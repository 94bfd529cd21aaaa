"""A stream that nobody else can go on with, when its replica's host is pulled out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

from bul.accounts.keys import hash_key
from bul.router.health import VANISHED
from bul.testing.net_hosts import net_hosts
from bul.testing.region_process import BulProcess, bul_process
from bul.testing.router_net import RawClient, RouterNet, post

pytestmark = [pytest.mark.slow, pytest.mark.steady]

KEY = "bul-the-operators"
SERVE = ["serve", "--engine", "timed", "--host", "0.0.0.0", "--port", "8002"]
FAST = {"BUL_TIMED_DECODE_TOKENS_PER_S": "20"}
LONG = (
    b'{"model":"bul-timed","stream":true,"max_tokens":4000,'
    b'"messages":[{"role":"user","content":"hello"}]}'
)
SILENT_S = 60.0
"""Far above the 20 s after which the kernel gives a host up, far below `response_timeout_s`."""


async def test_it_ends_with_an_error_while_that_of_a_stopped_process_waits(
    net: RouterNet, tmp_path: Path
) -> None:
    """The control is the stopped one: its kernel answers for it, so its stream lives on."""
    (tmp_path / "bul.toml").write_text(f'[keys]\noperator = "{hash_key(KEY)}"\n')
    async with contextlib.AsyncExitStack() as stack:
        hosts = stack.enter_context(net_hosts("gone", "stopped"))
        key = b"Authorization: Bearer %b\r\n" % KEY.encode()
        clients: dict[str, RawClient] = {}
        replicas: dict[str, BulProcess] = {}
        for name, host in hosts.hosts.items():
            replicas[name] = await stack.enter_async_context(
                bul_process([*SERVE, "--log-format", "json"], tmp_path, FAST, prefix=host.prefix)
            )
            await replicas[name].wait_for("ready")
            router = await net.router(f"http://{host.address}:8002")
            clients[name] = await net.client(router)
            await clients[name].send(post(LONG, extra=key))
            await clients[name].reader.readuntil(b"data: ")
        hosts["gone"].unplug()
        replicas["stopped"].send(signal.SIGSTOP)
        try:
            reader = clients["gone"].reader
            said = await asyncio.wait_for(reader.readuntil(b"stream_broken"), SILENT_S)
            assert VANISHED.encode() in said
            await drained(clients["stopped"])
        finally:
            replicas["stopped"].send(signal.SIGCONT)
        more = await asyncio.wait_for(clients["stopped"].reader.readuntil(b"data: "), 10.0)
        assert b'"error"' not in more
        assert not clients["stopped"].reader.at_eof()
        for replica in replicas.values():
            replica.send(signal.SIGKILL)  # neither stream would end within a minute


async def drained(client: RawClient) -> None:
    """What had come before it was stopped."""
    with contextlib.suppress(TimeoutError):
        while True:
            assert await asyncio.wait_for(client.reader.read(65536), 0.5), "it ended"
