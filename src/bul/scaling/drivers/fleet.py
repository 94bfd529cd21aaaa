"""A `Driver` over anything that can list, start and stop numbered units: containers, actors.

Refuses to trust its own memory: each call lists first, so that a start whose answer was lost, or
that came after its deadline, is found instead of repeated. Only what drains is remembered here,
since most backends cannot say it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Protocol, TypeVar

import httpx

from bul.errors import DriverError
from bul.scaling.drivers.contract import Admitted, Replica, at_once

__all__ = ["Backend", "Fleet", "FleetLimits", "Unit"]

POLL_S = 0.1
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """What a backend lists. url: "" while it has no address. failure: why it does not run."""

    name: str
    number: int
    url: str
    failure: str = ""


class Backend(Protocol):
    """The few verbs that differ. Each raises DriverError for what the world does."""

    async def units(self) -> Sequence[Unit]: ...

    async def start(self, number: int) -> None:
        """Start the unit with this number; it may be a while until it answers."""
        ...

    async def stop(self, name: str) -> None:
        """Ask it to drain, wait until it has ended, and remove it. Repeatable."""
        ...

    def kill(self, names: Sequence[str]) -> None:
        """End and remove them at once; does not wait, does not raise."""
        ...

    async def close(self) -> None:
        """Let go of what talks to the backend."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FleetLimits:
    """call_s: of one call of the backend, a stop apart. ready_s: from a start to ready.

    notice_s: between "draining" and the stop, so that a router that looks now and then has
    stopped sending. stop_s: of a stop, the drain included.
    """

    replicas_max: int = 64
    call_s: float = 30.0
    ready_s: float = 180.0
    notice_s: float = 1.0
    stop_s: float = 60.0
    probe_s: float = 1.0


class Fleet:
    """A `Driver`. A unit is ready when its `/ready` says so."""

    def __init__(self, backend: Backend, limits: FleetLimits = FleetLimits()) -> None:
        self._backend = backend
        self._limits = limits
        self._changing = asyncio.Lock()
        self._draining: dict[str, asyncio.Task[None]] = {}
        self._stuck: dict[str, str] = {}
        """Name -> why it could not be stopped."""
        self._spares: set[str] = set()
        """Started in place of another one, which is still there: not counted by `scale_to`."""
        self._client = httpx.AsyncClient(trust_env=False, timeout=limits.probe_s)
        self._closed = False

    async def replicas(self) -> Sequence[Replica]:
        if self._closed and not self._draining:
            return []
        leaving = set(self._draining)  # one that goes while it is listed still drains
        units = await self._units()
        return await asyncio.gather(*(self._replica(unit, leaving) for unit in units))

    async def scale_to(self, replicas: int) -> None:
        self._refuse_if_closed()
        most = self._limits.replicas_max
        if not 0 <= replicas <= most:
            raise DriverError(f"replicas must be in [0, {most}], was {replicas}")
        async with self._changing:
            units = await self._units()
            # Those that cannot live go first: a scale-in must not leave them.
            staying = sorted(self._staying(units), key=lambda unit: bool(self._failure(unit)))
            for unit in staying[replicas:]:
                self._drain(unit.name)
            numbers = {unit.number for unit in units}
            for _ in range(replicas - len(staying)):
                numbers.add(await self._start_next(numbers))

    async def replace(self, name: str, *, admitted: Admitted = at_once) -> Replica | None:
        self._refuse_if_closed()
        if name not in [unit.name for unit in self._staying(await self._units())]:
            raise DriverError(f"there is no replica {name} that could be replaced")
        async with self._spare() as spare:
            new = await self._until_ready(spare)
            await admitted(new.url)
            if name not in [unit.name for unit in self._staying(await self._units())]:
                return None
            self._spares.discard(spare)
            await asyncio.shield(self._drain(name))
        return new

    async def close(self) -> None:
        """Raises DriverError when something could not be listed or stopped."""
        if self._closed:
            return
        self._closed = True
        async with self._changing:
            try:
                for unit in await self._units():
                    self._drain(unit.name)
                if self._draining:
                    await asyncio.wait(self._draining.values())
            finally:
                await self._client.aclose()
                await self._backend.close()
        for name, why in self._stuck.items():
            raise DriverError(f"{name} {why}")

    def kill(self) -> None:
        asyncio.get_running_loop().create_task(self._kill_all())

    async def _kill_all(self) -> None:
        with contextlib.suppress(DriverError):
            self._backend.kill([unit.name for unit in await self._units()])

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise DriverError("this driver is closed")

    async def _units(self) -> Sequence[Unit]:
        units = await self._within(self._limits.call_s, self._backend.units(), "list")
        names = {unit.name for unit in units}
        self._stuck = {name: why for name, why in self._stuck.items() if name in names}
        return sorted(units, key=lambda unit: unit.number)

    def _staying(self, units: Sequence[Unit]) -> list[Unit]:
        leaving = self._draining.keys() | self._spares
        return [unit for unit in units if unit.name not in leaving]

    def _failure(self, unit: Unit) -> str:
        return self._stuck.get(unit.name, unit.failure)

    async def _replica(self, unit: Unit, leaving: set[str]) -> Replica:
        if unit.name in leaving or unit.name in self._draining:
            return Replica(name=unit.name, url=unit.url, state="draining")
        if why := self._failure(unit):
            return Replica(name=unit.name, url=unit.url, state="failed", failure=why)
        ready = bool(unit.url) and await self._is_ready(unit.url)
        return Replica(name=unit.name, url=unit.url, state="ready" if ready else "pending")

    async def _is_ready(self, url: str) -> bool:
        try:
            return (await self._client.get(f"{url}/ready")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def _start_next(self, numbers: set[int]) -> int:
        number = next(i for i in range(len(numbers) + 1) if i not in numbers)
        await self._within(self._limits.call_s, self._backend.start(number), "start a replica")
        return number

    def _drain(self, name: str) -> asyncio.Task[None]:
        """Draining from now on; the task ends when the unit is gone, or is known to be stuck."""
        if name not in self._draining:
            task = asyncio.create_task(self._stop(name))
            self._draining[name] = task
            task.add_done_callback(lambda _: self._draining.pop(name, None))
        return self._draining[name]

    async def _stop(self, name: str) -> None:
        self._stuck.pop(name, None)
        await asyncio.sleep(self._limits.notice_s)
        try:
            await self._within(self._limits.stop_s, self._backend.stop(name), f"stop {name}")
        except DriverError as error:
            self._stuck[name] = f"cannot be stopped: {error}"

    @contextlib.asynccontextmanager
    async def _spare(self) -> AsyncIterator[str]:
        """A new unit's name; drained at the end unless it has taken another one's place."""
        async with self._changing:
            before = await self._units()
            numbers = {unit.number for unit in before}
            number = next(i for i in range(len(numbers) + 1) if i not in numbers)
            await self._start_next(numbers)
            names = [unit.name for unit in await self._units() if unit.number == number]
            if not names:
                raise DriverError("the new replica was started and is not there")
            self._spares.update(names)
        try:
            yield names[0]
        finally:
            if names[0] in self._spares and not self._closed:
                self._drain(names[0])
            self._spares.difference_update(names)

    async def _until_ready(self, name: str) -> Replica:
        try:
            async with asyncio.timeout(self._limits.ready_s):
                while True:
                    found = [one for one in await self.replicas() if one.name == name]
                    if not found or found[0].state in ("failed", "draining"):
                        why = found[0].failure or found[0].state if found else "it is gone"
                        raise DriverError(f"{name} cannot start: {why}")
                    if found[0].state == "ready":
                        return found[0]
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            limit_s = self._limits.ready_s
            raise DriverError(f"{name} was not ready within {limit_s:g} s") from None

    async def _within(self, limit_s: float, call: Awaitable[Result], what: str) -> Result:
        try:
            async with asyncio.timeout(limit_s):
                return await call
        except TimeoutError:
            raise DriverError(f"cannot {what}: no answer within {limit_s:g} s") from None
