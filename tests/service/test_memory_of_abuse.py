"""What one abusive request costs in memory: less than 64 MiB at its height, whatever it asks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bul.testing.region_process import bul_process

pytestmark = [pytest.mark.security, pytest.mark.slow]

MIB = 1 << 20
RISE_MAX = 64 * MIB
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

GREEDY_SERVER = """
import asyncio, json, sys
async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    size = int(head.lower().split(b"content-length:")[1].split(b"\\r\\n")[0])
    try:
        json.loads(await reader.readexactly(size))
    except asyncio.IncompleteReadError:
        pass
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def body(**fields: object) -> bytes:
    return json.dumps({"model": "bul-timed", "prompt": "a", "max_tokens": 1, **fields}).encode()


def whole(data: bytes) -> bytes:
    return HEAD + f"Content-Length: {len(data)}\r\n\r\n".encode() + data


LARGE = 128 * MIB


def abuses() -> Iterator[tuple[str, bytes]]:
    """One after the other, so that only one of them takes room here."""
    yield "a body of 128 MiB", whole(body(prompt="x" * LARGE))
    chunk = b"100000\r\n" + b"x" * MIB + b"\r\n"
    yield "a body of 128 MiB in chunks", HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 128
    yield "just under the largest body", whole(body(prompt="word " * 800_000))
    yield "a million choices", whole(body(n=1_000_000))
    start, letters = b'{"model":"bul-timed","prompt":', b'["a"' + b',"a"' * 1_048_000 + b"]"
    yield "as many prompts as fit", whole(start + letters + b"}")
    yield "as many stop strings as fit", whole(start + b'"a","stop":' + letters + b"}")
    yield "token ids, each an object", whole(start + b"[500" + b",500" * 1_048_000 + b"]}")
    yield "a billion output tokens", whole(body(max_tokens=1_000_000_000))
    yield "long stop strings", whole(body(stop=["x" * 100] * 30_000))
    yield "brackets", whole(b'{"model":"bul-timed","prompt":' + b"[" * 4_000_000)
    yield "unknown fields", whole(body(**{f"field{n}": n for n in range(150_000)}))
    head = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    yield "a header of 64 MiB", head + b"a: " + b"x" * 64 * MIB
    yield "a million headers", head + b"a: b\r\n" * 1_000_000
    yield "a long line", b"GET /" + b"x" * 64 * MIB


class Memory:
    """A process's resident bytes. Only this process's own children, which it may reset."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc") / str(pid)

    def resident(self, field: str) -> int:
        """`VmRSS` now, or `VmHWM`, its height since `forget_the_height`."""
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(field)

    def forget_the_height(self) -> None:
        (self._folder / "clear_refs").write_text("5")


async def send(port: int, data: bytes) -> bytes:
    """The start of what comes back; the other side may hang up while it is being sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(reader.read(4096), 30)
        return b""
    finally:
        writer.transport.abort()


async def rise_of(memory: Memory, port: int, data: bytes) -> int:
    """How far above its present size one request drove the process."""
    memory.forget_the_height()
    before = memory.resident("VmRSS")
    await send(port, data)
    return memory.resident("VmHWM") - before


@pytest.fixture
async def greedy() -> AsyncIterator[tuple[Memory, int]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", GREEDY_SERVER, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    yield Memory(process.pid), port
    process.kill()
    await process.wait()


async def test_no_abusive_request_costs_64_mib_and_each_time_a_good_one_is_answered(
    tmp_path: Path,
) -> None:
    arguments = ["serve", "--engine", "timed", "--time-scale", "0", "--log-format", "json"]
    async with bul_process(arguments, tmp_path, {"BUL_SERVE_PORT": "0"}) as process:
        port = int((await process.wait_for("ready"))["url"].rpartition(":")[2])
        memory, good = Memory(process.pid), whole(body())
        assert (await send(port, good)).startswith(b"HTTP/1.1 200")
        rises = {}
        for name, data in abuses():
            rises[name] = await rise_of(memory, port, data)
            assert (await send(port, good)).startswith(b"HTTP/1.1 200"), name
        assert {name: rise for name, rise in rises.items() if rise >= RISE_MAX} == {}


async def test_a_server_that_reads_whatever_comes_is_seen(greedy: tuple[Memory, int]) -> None:
    """The control."""
    memory, port = greedy
    _, large = next(abuses())
    assert await rise_of(memory, port, large) > RISE_MAX
