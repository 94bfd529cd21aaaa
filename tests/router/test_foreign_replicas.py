"""Replicas that are not ours: llama.cpp's own server, twice, behind our router."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bul.inference.model_file import resolve_model
from bul.router.app import Router
from bul.testing.nginx import free_port
from bul.testing.router_net import RouterNet, post

pytestmark = pytest.mark.nightly

FOLDER = Path(sys.prefix) / "opt" / "xllamacpp"
TALK = "The archive is on the third floor, and the porter has the key. " * 12


@contextlib.asynccontextmanager
async def llama_server() -> AsyncIterator[str]:
    assert FOLDER.is_dir(), "no xllamacpp: tools/test-servers.sh nightly"
    model = str(resolve_model("", lambda _line: None))
    arguments = ["-m", "bul.testing.llama_server", str(FOLDER), model, str(free_port())]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            while not (line := await process.stdout.readline()).startswith(b'{"event"'):
                assert line, "it ended"
        yield json.loads(line)["url"]
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


def _turn(number: int, turn: int) -> bytes:
    text = f"Conversation {number}. {TALK}" + "And so on, as before. " * turn
    message = {"role": "user", "content": text}
    body = {"model": "any", "messages": [message], "max_tokens": 4, "temperature": 0}
    return post(json.dumps(body).encode())


async def _homes(net: RouterNet, router: Router) -> tuple[dict[int, set[bytes]], int]:
    """Which replica each conversation saw, and the cached tokens of the later turns, as said by
    the servers themselves.
    """
    seen: dict[int, set[bytes]] = {number: set() for number in range(2)}
    cached = 0
    for turn in range(3):
        for number in sorted(seen, key=lambda n: (n + turn) % 2):
            client = await net.client(router)
            await client.send(_turn(number, turn))
            async with asyncio.timeout(120):
                head = await client.reader.readuntil(b"\r\n\r\n")
                lines = dict(
                    line.lower().split(b": ", 1) for line in head.split(b"\r\n") if b": " in line
                )
                body = json.loads(await client.reader.readexactly(int(lines[b"content-length"])))
            assert b" 200 " in head[:20], body
            seen[number].add(lines[b"x-bul-replica"])
            if turn:
                cached += body["usage"]["prompt_tokens_details"]["cached_tokens"]
    return seen, cached


async def test_conversations_stay_where_their_prefix_lies_without_any_events(
    net: RouterNet,
) -> None:
    async with llama_server() as one, llama_server() as two:
        router = await net.router(one, two, response_timeout_s=120.0, hedge_delay_min_s=0.0)
        seen, cached = await _homes(net, router)
        assert all(follower.refused for follower in router.followers.values())
        assert [len(found) for found in seen.values()] == [1, 1]
        assert cached > 4 * 100


async def test_the_control_taking_turns_moves_them(net: RouterNet) -> None:
    async with llama_server() as one, llama_server() as two:
        router = await net.router(
            one, two, policy="round_robin", response_timeout_s=120.0, hedge_delay_min_s=0.0
        )
        seen, _ = await _homes(net, router)
        assert any(len(found) == 2 for found in seen.values())
