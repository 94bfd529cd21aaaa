"""The link between two regions on one machine: a TCP proxy that is late, slow, or spoils bytes.

Refuses to decide by chance: a fault happens at a byte's offset or when a test says so. Faults are
set per direction and may change while connections are open.

    async with FaultProxy("127.0.0.1", port) as proxy:
        proxy.to_client = Faults(delay_s=0.2)       # every answer comes 0.2 s later
        proxy.to_client = Faults(stalled=True)      # half-open: nothing comes, nothing ends
        proxy.to_client = Faults(flip_at=100)       # one bit of byte 100 of each connection
        proxy.reset()                               # RST to everybody, now
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import random
import socket
import struct
import types
from typing import Self

__all__ = ["FaultProxy", "Faults"]

READ_BYTES = 65536
PENDING_MAX = 256
"""Pieces under way in one direction; the sender waits beyond that, as with a real network."""
SLICE_S = 0.02
"""A limited rate is kept up in slices of this length."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """What happens to the bytes of one direction of every connection.

    delay_s: of each byte; does not lower the rate. rate_bytes_per_s: of each connection.
    stalled: bytes wait and so does the end, until this is False again. cut_at and reset_at: this
    offset is not passed on; the connection ends with FIN or RST instead. flip_at: the lowest bit
    of this byte is flipped. swallow: pieces are taken and never passed on, as they came.
    noise_seed: each byte is replaced by a random one. Offsets count from the first byte of each
    connection.
    """

    delay_s: float = 0.0
    rate_bytes_per_s: float = math.inf
    stalled: bool = False
    cut_at: int | None = None
    reset_at: int | None = None
    flip_at: int | None = None
    swallow: bool = False
    noise_seed: int | None = None


NO_FAULTS = Faults()


class FaultProxy:
    """Listens on a free port of loopback while entered, and passes everything to HOST:PORT."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._to_client = self._to_server = NO_FAULTS
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self.port = 0
        self.connections = 0
        """Accepted so far."""
        self.passed_bytes = 0
        """In both directions, so far."""
        self.swallowed = 0
        """Pieces, in both directions."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._links)

    @property
    def to_client(self) -> Faults:
        """Of what the target says."""
        return self._to_client

    @to_client.setter
    def to_client(self, faults: Faults) -> None:
        self._to_client = faults
        self._wake()

    @property
    def to_server(self) -> Faults:
        """Of what the clients say."""
        return self._to_server

    @to_server.setter
    def to_server(self, faults: Faults) -> None:
        self._to_server = faults
        self._wake()

    def stall(self) -> None:
        """Both directions stand still; connections open and new ones, until `heal`."""
        self.to_client = self.to_server = Faults(stalled=True)

    def heal(self) -> None:
        """No fault in either direction from now on."""
        self.to_client = self.to_server = NO_FAULTS

    def cut(self) -> None:
        """End all connections as a process that exits does."""
        for link in list(self._links):
            link.end(reset=False)

    def reset(self) -> None:
        """End all connections as a machine that has forgotten them does."""
        for link in list(self._links):
            link.end(reset=True)

    async def refuse(self) -> None:
        """Take no more connections; those that are open go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Listen, on the port of last time if there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def wait_changed(self) -> None:
        """Until the faults have changed; for the connections."""
        await self._changed.wait()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        await self.refuse()
        tasks = list(self._links.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link(self, writer)
        task = asyncio.current_task()
        assert task is not None
        self._links[link] = task
        try:
            await link.run(reader, *self._target)
        except (OSError, asyncio.CancelledError):
            pass  # the end of this connection, whoever made it
        finally:
            link.end(reset=False)
            self._links.pop(link)


class _Link:
    """One client's connection and the one that was opened for it."""

    def __init__(self, proxy: FaultProxy, client: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = client
        self._server: asyncio.StreamWriter | None = None

    async def run(self, reader: asyncio.StreamReader, host: str, port: int) -> None:
        """Until both directions have ended, or one of them was broken."""
        from_server, self._server = await asyncio.open_connection(host, port)
        directions = [
            asyncio.create_task(self._pass(reader, self._server, to_client=False)),
            asyncio.create_task(self._pass(from_server, self._client, to_client=True)),
        ]
        try:
            await asyncio.gather(*directions)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    def end(self, *, reset: bool) -> None:
        """Close both ends; with `reset`, without a goodbye."""
        for writer in filter(None, (self._client, self._server)):
            connection = writer.get_extra_info("socket")
            if reset and connection is not None:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_client: bool
    ) -> None:
        """Read at once and write when it is due, so that a delay is no limit of the rate."""
        pending: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PENDING_MAX)
        writing = asyncio.create_task(self._write(pending, writer, to_client=to_client))
        loop = asyncio.get_running_loop()
        try:
            while True:
                data = await reader.read(READ_BYTES)
                due_s = loop.time() + self._faults(to_client=to_client).delay_s
                await pending.put((due_s, data))
                if not data:
                    break
            await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(
        self,
        pending: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        *,
        to_client: bool,
    ) -> None:
        offset = 0
        while True:
            due_s, data = await pending.get()
            await asyncio.sleep(due_s - asyncio.get_running_loop().time())
            while self._faults(to_client=to_client).stalled:
                await self._proxy.wait_changed()
            if not data:
                writer.write_eof()
                return
            faults = self._faults(to_client=to_client)
            if faults.swallow:
                self._proxy.swallowed += 1
                continue
            await _send(writer, _spoil(faults, data, offset), faults.rate_bytes_per_s)
            self._proxy.passed_bytes += len(data)
            offset += len(data)
            for end, reset in ((faults.cut_at, False), (faults.reset_at, True)):
                if end is not None and offset > end:
                    self.end(reset=reset)
                    return

    def _faults(self, *, to_client: bool) -> Faults:
        return self._proxy.to_client if to_client else self._proxy.to_server


async def _send(writer: asyncio.StreamWriter, data: bytes, rate_bytes_per_s: float) -> None:
    if math.isinf(rate_bytes_per_s):
        writer.write(data)
        await writer.drain()
        return
    step = max(1, int(rate_bytes_per_s * SLICE_S))
    for at in range(0, len(data), step):
        piece = data[at : at + step]
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(len(piece) / rate_bytes_per_s)


def _spoil(faults: Faults, data: bytes, offset: int) -> bytes:
    """The bytes at `offset` as they come out: [0, end) of them, one perhaps flipped."""
    if faults.flip_at is not None and offset <= faults.flip_at < offset + len(data):
        at = faults.flip_at - offset
        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    if faults.noise_seed is not None:
        data = random.Random(faults.noise_seed + offset).randbytes(len(data))
    ends = [end for end in (faults.cut_at, faults.reset_at) if end is not None]
    return data[: max(0, min(ends) - offset)] if ends else data
