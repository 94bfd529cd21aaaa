"""Each fault does what it says, and without one nothing is changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from bul.testing.tcp_proxy import FaultProxy, Faults
from bul.testing.waiting import eventually

TEXT = bytes(range(256)) * 64


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """In front of a server that sends back what it gets."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FaultProxy("127.0.0.1", port) as running:
        yield running
    server.close()
    await server.wait_closed()


async def _connect(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def _say(proxy: FaultProxy, text: bytes = TEXT) -> bytes:
    """What comes back until the end."""
    reader, writer = await _connect(proxy)
    writer.write(text)
    writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


async def test_without_a_fault_every_byte_and_the_end_pass(proxy: FaultProxy) -> None:
    assert await _say(proxy) == TEXT
    assert proxy.connections == 1
    await eventually("it is closed", lambda: proxy.open_connections == 0)


async def test_a_delay_holds_for_both_directions_and_is_no_limit_of_the_rate(
    proxy: FaultProxy,
) -> None:
    proxy.to_client = proxy.to_server = Faults(delay_s=0.05)
    loop = asyncio.get_running_loop()
    reader, writer = await _connect(proxy)
    began_s = loop.time()
    for _ in range(20):
        writer.write(TEXT)
        await asyncio.sleep(0)
    assert await reader.readexactly(len(TEXT) * 20) == TEXT * 20
    assert loop.time() - began_s >= 0.1
    writer.close()


async def test_a_rate_is_kept(proxy: FaultProxy) -> None:
    proxy.to_client = Faults(rate_bytes_per_s=len(TEXT) * 5)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await _say(proxy) == TEXT
    assert loop.time() - began_s >= 0.2


@pytest.mark.parametrize("at", [0, 1, 100, len(TEXT) - 1])
async def test_a_cut_passes_what_was_before_it_and_no_more(proxy: FaultProxy, at: int) -> None:
    proxy.to_client = Faults(cut_at=at)
    assert await _say(proxy) == TEXT[:at]


async def test_a_cut_beyond_the_end_is_none(proxy: FaultProxy) -> None:
    proxy.to_client = Faults(cut_at=len(TEXT))
    assert await _say(proxy) == TEXT


async def test_a_reset_is_an_error_for_the_reader(proxy: FaultProxy) -> None:
    proxy.to_client = Faults(reset_at=0)
    with pytest.raises(ConnectionResetError):
        await _say(proxy)


async def test_one_bit_is_flipped_and_no_other(proxy: FaultProxy) -> None:
    proxy.to_client = Faults(flip_at=1000)
    got = await _say(proxy)
    assert [at for at, (a, b) in enumerate(zip(got, TEXT, strict=True)) if a != b] == [1000]
    assert got[1000] ^ TEXT[1000] == 1


async def test_a_stall_is_half_open_until_it_heals(proxy: FaultProxy) -> None:
    proxy.stall()
    reader, writer = await _connect(proxy)
    writer.write(TEXT)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    assert not reader.at_eof()
    proxy.heal()
    assert await reader.readexactly(len(TEXT)) == TEXT
    writer.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_open_connections_end_on_command(proxy: FaultProxy, reset: bool) -> None:
    reader, writer = await _connect(proxy)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    if reset:
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read()
    else:
        proxy.cut()
        assert await reader.read() == b""
    writer.close()
    assert await _say(proxy) == TEXT


async def test_it_refuses_and_accepts_again_on_the_same_port(proxy: FaultProxy) -> None:
    port = proxy.port
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await _connect(proxy)
    await proxy.accept()
    assert proxy.port == port
    assert await _say(proxy) == TEXT


async def test_a_target_that_is_not_there_ends_the_connection() -> None:
    async with FaultProxy("127.0.0.1", 1) as proxy:
        assert await _say(proxy) == b""
