"""Follows the block events of one replica, so that the router knows what lies where.

Refuses to make a request wait or fail: without events, with stale ones, or with a replica that has
none to give, the router goes on with what it sent itself (`residency.py`). Each router follows
for itself; there is nothing between routers to agree on.

    connect -> (epoch, after) if known, else a snapshot
    line    -> numbers follow? believe it : forget, connect again for a snapshot
    silence -> after STALE_S nothing is believed any more; the connection is given up

A frozen replica, a cut cable and a proxy that eats bytes all come to the same: nothing for
STALE_S, or a number that does not follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import typing
from collections.abc import Callable

from bul.blocks.block_events import BEAT_S, LINE_BYTES_MAX, PATH, TextsHeld, decode_line
from bul.router.replica import READY, REMOVED

if typing.TYPE_CHECKING:
    from bul.router.replica import Replica

__all__ = ["HINTS_MAX", "STALE_S", "Follower"]

HINTS_MAX = 131_072
"""Of one replica: what is told beyond is not believed, and costs prefills, not memory."""
STALE_S = 3 * BEAT_S
RETRY_S = 0.25
RETRY_S_MAX = 2.0
NOT_OURS_S = 15.0
"""A server that has no such page may be replaced by one that has."""
HEAD_LINES_MAX = 100


class _NotOursError(Exception):
    """It answers, but does not tell events to us."""


class Follower:
    """The events of one replica; `start` in a running event loop, `stop` once.

    authorization: value of the header for replicas with keys, b"" for none. detect_gaps: see
    `TextsHeld`. lines, failures: counters; refused: the last answer was not 200.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        now_s: Callable[[], float],
        authorization: bytes = b"",
        connect_timeout_s: float = 1.0,
        detect_gaps: bool = True,
    ) -> None:
        self._replica = replica
        self._now_s = now_s
        self._authorization = authorization
        self._connect_timeout_s = connect_timeout_s
        self._task: asyncio.Task[None] | None = None
        self._epoch = ""
        self.held = TextsHeld(HINTS_MAX, detect_gaps=detect_gaps)
        self.last_line_s: float | None = None
        self.lines = self.failures = 0
        self.refused = False

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def age_s(self) -> float | None:
        """Since the replica last said something; None if it never did."""
        return None if self.last_line_s is None else self._now_s() - self.last_line_s

    @property
    def fresh(self) -> bool:
        """Whether what it told can be believed now."""
        age_s = self.age_s
        return self.held.synced and age_s is not None and age_s <= STALE_S

    def check(self) -> None:
        """Let the replica's residency speak from events, or not. Cheap: called every sweep."""
        believed = self._replica.state == READY and self.fresh
        self._replica.residency.told = self.held.hints if believed else None

    async def _run(self) -> None:
        pause_s = RETRY_S
        while self._replica.state != REMOVED:
            lines = self.lines
            try:
                await self._follow()
            except _NotOursError:
                self.refused = True
                pause_s = NOT_OURS_S
            except (OSError, EOFError, ValueError):
                self.failures += 1  # TimeoutError and msgspec's are among them
                pause_s = min(pause_s * 2, RETRY_S_MAX)
            if self.lines > lines:
                pause_s = RETRY_S
            self.check()
            await asyncio.sleep(pause_s)

    async def _follow(self) -> None:
        """One connection's life. Raises what ends it."""
        async with asyncio.timeout(self._connect_timeout_s):
            reader, writer = await asyncio.open_connection(
                self._replica.host, self._replica.port, limit=LINE_BYTES_MAX
            )
        try:
            writer.write(self._request())
            async with asyncio.timeout(STALE_S):
                await _read_head(reader)
            self.refused = False
            async with contextlib.aclosing(_events(reader)) as events:
                async for event in events:
                    if not self._believe(event):
                        return
        finally:
            writer.transport.abort()

    def _request(self) -> bytes:
        known = f"?epoch={self.held.epoch}&after={self.held.seq}" if self.held.synced else ""
        key = b"authorization: %b\r\n" % self._authorization if self._authorization else b""
        head = b"GET %b HTTP/1.1\r\nhost: %b\r\n%bconnection: close\r\n\r\n"
        return head % ((PATH + known).encode(), self._replica.authority, key)

    def _believe(self, data: bytes) -> bool:
        """False if a line is missing: then the next connection asks for everything."""
        line = decode_line(data)
        if line is None:
            return True
        self.lines += 1
        self.last_line_s = self._now_s()
        if self._epoch and line.epoch != self._epoch:
            self._replica.residency.clear()  # another process: what the old one got is gone
        self._epoch = line.epoch
        gone = self.held.apply(line)
        if gone:
            self._replica.residency.drop(gone)
        self.check()
        return gone is not None


async def _read_head(reader: asyncio.StreamReader) -> None:
    """Raises _NotOursError unless it is a 200 with chunks, ValueError for what is no HTTP."""
    status = (await reader.readline()).split(None, 2)
    if len(status) < 2 or not status[0].startswith(b"HTTP/1.1"):
        raise ValueError("not HTTP/1.1")
    chunked = False
    for _ in range(HEAD_LINES_MAX):
        line = (await reader.readline()).strip().lower()
        if not line:
            break
        chunked = chunked or line == b"transfer-encoding: chunked"
    if status[1] != b"200" or not chunked:
        raise _NotOursError


async def _events(reader: asyncio.StreamReader) -> typing.AsyncGenerator[bytes, None]:
    """The events of a chunked stream, each within STALE_S. Raises ValueError for bad framing."""
    rest = b""
    while True:
        async with asyncio.timeout(STALE_S):
            size = int((await reader.readline()).strip() or b"x", 16)
            if size > 2 * LINE_BYTES_MAX or len(rest) > 2 * LINE_BYTES_MAX:
                raise ValueError("an event is too long")
            data = await reader.readexactly(size)
            if await reader.readexactly(2) != b"\r\n":
                raise ValueError("bad chunk")
        if not size:
            return
        *whole, rest = (rest + data).split(b"\n\n")
        for event in whole:
            yield event
