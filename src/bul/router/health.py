"""Is a replica ready? One probe loop per replica asks its `/ready` twice a second, and another,
on a slow schedule of its own, has it generate one token (`/health?deep=1`).

Refuses to wait for probes where a request has already seen the answer: a refused connection
takes a replica out at once (`exchange.py`), and three broken answers in a row for a while that
doubles (`Prober.eject`). Probes alone bring it back.

A probe whose time-out itself came late says nothing of the replica: our own loop stood still, and
the answer may lie unread.

A server that has no `/ready` (vLLM, SGLang, llama-server) answers 404; that it answers is enough,
and nobody asks it for tokens.

What a vanished host had begun and nobody else can go on with has no end of its own: the kernel asks
its peer (`end_if_vanished`). That of a process that is only stopped, or busy, answers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from bul.router.replica import DOWN, READY, REMOVED, UNREADY, Replica

__all__ = ["VANISHED", "Prober", "end_if_vanished", "probe"]

TIMEOUTS_MAX = 2
"""Probes without an answer in time after which a replica is down: one may be a hiccup."""
FAILURES_MAX = 3
EJECTION_S = 2.0
EJECTION_S_MAX = 30.0
STATUS_BYTES_MAX = 1024
DEEP_PATH = b"/health?deep=1"
DEEP_FAILURES_MAX = 2
"""Deep probes without a token after which a replica is out: one may have met a burst."""
NOT_OURS = "not ours"
HEADERS_MAX = 32
TIMED_OUT = "timed out"
LATE = "late"
LATE_S = 0.1
"""A time-out later than this was not the replica's: the loop, or the whole machine, was busy."""
SLOTS_HEADER = b"x-bul-slots"
"""How many requests the replica batches."""
_KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""Seconds of silence, seconds between questions, questions: 20 s (RFC 9293, 3.8.4)."""
VANISHED = "the host of the replica was not heard of for 20 s"


def end_if_vanished(transport: asyncio.BaseTransport) -> None:
    """Let the connection break some 20 s after its peer's host was last heard of."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # not every system has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def probe(replica: Replica, timeout_s: float, path: bytes = b"/ready") -> str:
    """One of "ready", "unready", "down", "timed out", "not ours" (no such page, but a server) and
    "late": nobody knows.
    """
    loop = asyncio.get_running_loop()
    due_s = loop.time() + timeout_s
    writer: asyncio.StreamWriter | None = None
    slots = 0
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                replica.host, replica.port, limit=STATUS_BYTES_MAX
            )
            writer.write(
                b"GET %b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n"
                % (path, replica.authority)
            )
            line = await reader.readline()
            slots = await _slots(reader)
    except TimeoutError:
        return LATE if loop.time() > due_s + LATE_S else TIMED_OUT
    except (OSError, ValueError):
        return DOWN
    finally:
        if writer is not None:
            writer.transport.abort()
    if slots:
        replica.limit.told(slots)
    return _meaning(line)


async def _slots(reader: asyncio.StreamReader) -> int:
    """From a header of our own replicas' answer; 0 where there is none."""
    for _ in range(HEADERS_MAX):
        line = await reader.readline()
        name, _, value = line.partition(b":")
        if name.lower() == SLOTS_HEADER and value.strip().isdigit():
            return int(value)
        if line in (b"\r\n", b""):
            break
    return 0


def _meaning(status_line: bytes) -> str:
    parts = status_line.split(None, 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        return DOWN
    status = int(parts[1])
    if status in (401, 403, 404, 405):
        return NOT_OURS
    return READY if 200 <= status < 300 else UNREADY


class Prober:
    """The probe loops of one replica; `start` in a running event loop, `stop` once.

    deep_interval_s: between two deep probes, 0 for none.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        interval_s: float,
        timeout_s: float,
        now_s: Callable[[], float],
        deep_interval_s: float = 0.0,
        deep_timeout_s: float = 60.0,
    ) -> None:
        self._replica = replica
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._now_s = now_s
        self._timeouts = 0
        self._ejections = 0
        self._soon = asyncio.Event()
        self._deep_interval_s = deep_interval_s
        self._deep_timeout_s = deep_timeout_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._run()))
        if self._deep_interval_s:
            self._tasks.append(loop.create_task(self._run_deep()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def soon(self) -> None:
        """Probe now rather than at the next interval."""
        self._soon.set()

    def eject(self) -> None:
        """Its answers were broken: out, whatever its probes say, for a while that doubles."""
        replica = self._replica
        pause_s = min(EJECTION_S * 2.0**self._ejections, EJECTION_S_MAX)
        self._ejections = min(self._ejections + 1, 8)
        replica.ejected_until_s = self._now_s() + pause_s
        replica.failures_in_a_row = 0
        replica.set_state(DOWN)

    def saw(self, outcome: str) -> None:
        """Judge one probe's outcome."""
        replica = self._replica
        if outcome == LATE:
            return
        if outcome == TIMED_OUT:
            self._timeouts += 1
            if self._timeouts >= TIMEOUTS_MAX:
                replica.is_silent = True
                replica.set_state(DOWN)
            return
        self._timeouts = 0
        replica.is_silent = False
        outcome = READY if outcome == NOT_OURS else outcome
        if outcome == READY and self._now_s() < replica.ejected_until_s:
            return
        replica.set_state(outcome)

    async def _run(self) -> None:
        while self._replica.state != REMOVED:
            self._soon.clear()
            self.saw(await probe(self._replica, self._timeout_s))
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._soon.wait()
            except TimeoutError:
                continue

    async def _run_deep(self) -> None:
        """A replica may answer every probe while its engine stands still: that is found here."""
        failures = 0
        while self._replica.state != REMOVED:
            await asyncio.sleep(self._deep_interval_s)
            if self._replica.state != READY:
                failures = 0
                continue
            outcome = await probe(self._replica, self._deep_timeout_s, DEEP_PATH)
            if outcome == NOT_OURS:
                return
            failures = 0 if outcome == READY else failures + 1
            if failures >= DEEP_FAILURES_MAX:
                failures = 0
                self.eject()
