"""A driver and a signal source for tests of the scaling loop, with faults on demand.

Refuses to start anything: replicas are names. `faults` are used up one a call, in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

from bul.clock import Clock
from bul.errors import DriverError
from bul.scaling.drivers.contract import Admitted, Replica, ReplicaState, at_once
from bul.scaling.drivers.fleet import Unit
from bul.scaling.signals import Signals
from bul.testing.signals import signals_at

__all__ = ["FakeBackend", "FakeDriver", "FakeSource"]

Fault = Literal["none", "fail", "fail_after", "hang", "hang_then_fail", "half"]


class FakeDriver:
    """fail: refuses; fail_after: does it, then raises; hang: until `release`, then does it, or
    fails; half: does half.
    """

    def __init__(self, replicas: int = 2) -> None:
        self.states: list[ReplicaState] = ["ready"] * replicas
        self.wishes: list[int] = []
        self.faults: deque[Fault] = deque()
        self.list_fails = False
        self._released = asyncio.Event()

    async def replicas(self) -> Sequence[Replica]:
        if self.list_fails:
            raise DriverError("the socket is gone")
        return [
            Replica(name=f"r{index}", url=f"http://127.0.0.1:{index}", state=state)
            for index, state in enumerate(self.states)
        ]

    async def scale_to(self, replicas: int) -> None:
        self.wishes.append(replicas)
        fault = self.faults.popleft() if self.faults else "none"
        if fault == "fail":
            raise DriverError("no room")
        if fault in ("hang", "hang_then_fail"):
            await self._released.wait()
        if fault == "hang_then_fail":
            raise DriverError("gave up after all")
        if fault == "half":
            replicas = (replicas + len(self.states)) // 2
        change = replicas - len(self.states)
        self.states = self.states[:replicas] + ["pending"] * max(change, 0)
        if fault == "fail_after":
            raise DriverError("started, then lost the answer")

    async def replace(self, name: str, *, admitted: Admitted = at_once) -> Replica | None:
        """Nothing to do: names are all that there is."""
        await admitted(name)
        return None

    async def close(self) -> None:
        self.states = []

    def kill(self) -> None:
        self.states = []

    def become_ready(self) -> None:
        self.states = ["ready"] * len(self.states)

    def release(self) -> None:
        """Let a hanging call go on."""
        self._released.set()


class FakeSource:
    """Signals of the present, changed by `values`; None or an exception when told so."""

    def __init__(self, clock: Clock, **values: Any) -> None:
        self._clock = clock
        self.values = values
        self.silent = False
        self.broken = False

    async def signals(self) -> Signals | None:
        if self.broken:
            raise OSError("connection refused")
        return None if self.silent else signals_at(self._clock.now_s(), **self.values)


class FakeBackend:
    """Units that are names. late: starts that only happen when `release` is called, after their
    caller has given up; lost: done, but the answer is an error; stuck: stops that fail.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.starts: list[int] = []
        self.late = self.lost = self.stuck = 0
        self._released = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def units(self) -> Sequence[Unit]:
        return [Unit(name=name, number=number, url="") for name, number in self.names.items()]

    async def start(self, number: int) -> None:
        self.starts.append(number)
        if self.late:
            self.late -= 1
            # The call is given up, what it began is not: as with a request that has been sent.
            self._tasks.append(asyncio.create_task(self._appear_later(number)))
            await asyncio.Event().wait()
        self.names[f"unit-{number}"] = number
        if self.lost:
            self.lost -= 1
            raise DriverError("the answer was lost")

    async def _appear_later(self, number: int) -> None:
        await self._released.wait()
        self.names[f"unit-{number}"] = number

    async def stop(self, name: str) -> None:
        if self.stuck:
            self.stuck -= 1
            raise DriverError("the disk is read-only")
        self.names.pop(name, None)

    def kill(self, names: Sequence[str]) -> None:
        for name in names:
            self.names.pop(name, None)

    async def close(self) -> None:
        pass

    def release(self) -> None:
        """What was late happens now."""
        self._released.set()
