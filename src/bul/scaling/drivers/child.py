"""One replica as a child process: started, watched, started again, drained.

Refuses to let a process outlive us (see `leash.py`), to let its log fill the disk (`logfile.py`),
or to restart in a tight loop (`restarts.py`). The command must print one JSON line
`{"event": "ready", "url": ...}` on stdout once it takes requests; the rest is its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from bul.clock import Clock, SystemClock
from bul.errors import DriverError
from bul.scaling.drivers import leash
from bul.scaling.drivers.allocator import with_one_heap
from bul.scaling.drivers.contract import Replica, ReplicaState
from bul.scaling.drivers.logfile import BoundedLog
from bul.scaling.drivers.restarts import RestartLimits, Restarts, after_exit

__all__ = ["Child", "ChildEvent", "ChildPlan"]

EventKind = Literal["started", "ready", "port_taken", "exited", "draining", "stopped"]
READ_BYTES = 65536
LEFTOVER_S = 1.0
"""How long a dead child's last output is waited for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChildEvent:
    """Something happened to a replica. `text` is one line for people."""

    kind: EventKind
    replica: Replica
    pid: int
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChildPlan:
    """How to run one replica.

    command: argv for a port, 0 for any free one. log_dir: gets NAME.log. ready_s: a process that
    is not ready by then is killed. kill_after_s: from SIGTERM to SIGKILL; longer than its drain.
    """

    command: Callable[[int], Sequence[str]]
    environ: Mapping[str, str]
    log_dir: Path
    host: str = "127.0.0.1"
    ready_s: float = 180.0
    kill_after_s: float = 35.0
    log_bytes_max: int = 8 << 20
    restarts: RestartLimits = RestartLimits()
    clock: Clock = dataclasses.field(default_factory=SystemClock)


class _Line(msgspec.Struct):
    event: str
    url: str = ""


class Child:
    """Owned by the driver; every method runs on the driver's event loop."""

    def __init__(
        self, name: str, port: int, plan: ChildPlan, notify: Callable[[ChildEvent], None]
    ) -> None:
        self.name = name
        self.state: ReplicaState = "pending"
        self.failure = ""
        self._port = port
        self._url = ""
        self._plan = plan
        self._notify = notify
        self._restarts = Restarts()
        self._ready_at_s: float | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._starting = asyncio.Lock()
        self._log = BoundedLog(plan.log_dir / f"{name}.log", plan.log_bytes_max)

    @property
    def replica(self) -> Replica:
        why = self.failure if self.state == "failed" else ""
        return Replica(name=self.name, url=self._url, state=self.state, failure=why)

    @property
    def pid(self) -> int:
        """Of the running process, 0 between lives."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Start the first life and the supervision. Raises DriverError."""
        async with self._starting:
            await self._spawn()
            self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Drain: SIGTERM, and SIGKILL after `kill_after_s`. Idempotent; no process is left."""
        if not self._stopping.is_set():
            self.state = "draining"
            self._stopping.set()
            self._tell("draining", f"{self.name} drains")
            self._signal(signal.SIGTERM)
        async with self._starting:
            pass  # a process that is being born gets the signal then
        if self._supervisor is None:
            return
        done, _ = await asyncio.wait({self._supervisor}, timeout=self._plan.kill_after_s)
        if not done:
            self.kill()
            await self._supervisor

    def kill(self) -> None:
        """SIGKILL to the child's whole process group. Does not wait."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _supervise(self) -> None:
        while True:
            exit_code = await self._live()
            if self._stopping.is_set() or not await self._rest(exit_code):
                break
        await self._stopping.wait()
        self._log.close()
        self._tell("stopped", f"{self.name} stopped")

    async def _rest(self, exit_code: int) -> bool:
        """Wait as long as the restart policy says, then start again. False: never again."""
        ready_for_s = None
        if self._ready_at_s is not None:
            ready_for_s = self._plan.clock.now_s() - self._ready_at_s
        restart, self._restarts = after_exit(
            self._plan.restarts, self._restarts, exit_code=exit_code, ready_for_s=ready_for_s
        )
        self.state, self._url = restart.state, ""
        self.failure = self._finding(restart.reason)
        self._tell("exited", f"{self.name} died ({self.failure})")
        if restart.wait_s is None:
            return False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), restart.wait_s)
        if self._stopping.is_set():
            return False
        if self._ready_at_s is None:
            self._port = 0  # it may be the port that kills it
        with contextlib.suppress(DriverError):  # judged as one more short life by _live
            await self._spawn()
        return True

    def _finding(self, reason: str) -> str:
        tail = [line for line in self._log.tail(5) if line.strip()]
        return f"{reason}; its last words: {tail[-1][:300]}" if tail else reason

    async def _spawn(self) -> None:
        plan = self._plan
        self._process = None
        self._ready_at_s = None
        command = [*_leashed(), *plan.command(self._choose_port())]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=with_one_heap(plan.environ),
                start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
            )
        except OSError as error:
            raise DriverError(f"cannot start {self.name}: {error}") from error
        self._tell("started", f"{self.name} starts, pid {self._process.pid}")
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)

    def _choose_port(self) -> int:
        if self._port and not _is_free(self._plan.host, self._port):
            self._tell("port_taken", f"port {self._port} is taken: {self.name} takes a free one")
            self._port = 0
        return self._port

    async def _live(self) -> int:
        """Follow one life to its end; returns the exit code, negative for a signal."""
        if self._process is None:
            return 1
        late = asyncio.get_running_loop().call_later(self._plan.ready_s, self._kill_if_pending)
        reader = asyncio.create_task(self._read(self._process))
        exit_code = await self._process.wait()
        late.cancel()
        await asyncio.wait({reader}, timeout=LEFTOVER_S)
        reader.cancel()
        self._process = None
        return exit_code

    def _kill_if_pending(self) -> None:
        if self._ready_at_s is None:
            self._log.write(f"killed: not ready within {self._plan.ready_s} s\n".encode())
            self.kill()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        pending = b""
        while chunk := await process.stdout.read(READ_BYTES):
            self._log.write(chunk)
            if self._ready_at_s is not None:
                continue
            *lines, pending = (pending + chunk).split(b"\n")
            pending = pending[-READ_BYTES:]
            for line in lines:
                self._look_for_ready(line)

    def _look_for_ready(self, line: bytes) -> None:
        try:
            document = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError:
            return
        if document.event != "ready" or not document.url or self._stopping.is_set():
            return
        self._url = document.url.rstrip("/")
        self._port = int(self._url.rpartition(":")[2])
        self._ready_at_s = self._plan.clock.now_s()
        self.state, self.failure = "ready", ""
        self._tell("ready", f"{self.name} is ready at {self._url}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _tell(self, kind: EventKind, text: str) -> None:
        self._notify(ChildEvent(kind=kind, replica=self.replica, pid=self.pid, text=text))


def _leashed() -> list[str]:
    return [sys.executable, "-I", "-S", str(leash.__file__), str(os.getpid())]


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
