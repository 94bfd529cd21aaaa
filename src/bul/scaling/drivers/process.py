"""Replicas as supervised child processes of this one: the driver of `bul up`.

Refuses to leave anything behind: what it started ends with it, even if it is killed itself.
The children are tied to the *thread* that starts them (Linux's PR_SET_PDEATHSIG), so the driver
belongs on the main thread's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from bul.errors import DriverError
from bul.scaling.drivers.child import Child, ChildEvent, ChildPlan
from bul.scaling.drivers.contract import Admitted, Replica, at_once

__all__ = ["ProcessDriver"]


def _ignore(_: ChildEvent) -> None:
    pass


class ProcessDriver:
    """A `Driver`. Replica i listens on `port_first + i` while that port is free.

    notify: called on the event loop for each change; must not block. A replica that cannot
    live is shown as "failed" with its last words in `failures`, and still retried now and then.
    """

    def __init__(
        self,
        plan: ChildPlan,
        *,
        port_first: int = 0,
        replicas_max: int = 64,
        notify: Callable[[ChildEvent], None] = _ignore,
    ) -> None:
        self._plan = plan
        self._port_first = port_first
        self._replicas_max = replicas_max
        self._notify = notify
        self._children: dict[int, Child] = {}
        self._spares: set[int] = set()
        """Started in place of another one, which is still there: not counted by `scale_to`."""
        self._changed = asyncio.Event()
        self._stops: set[asyncio.Task[None]] = set()
        self._closed = False

    async def replicas(self) -> Sequence[Replica]:
        return [child.replica for _, child in sorted(self._children.items())]

    @property
    def ready_urls(self) -> list[str]:
        """Of the replicas that take requests now, in the order of their names."""
        children = [child for _, child in sorted(self._children.items())]
        return [child.replica.url for child in children if child.state == "ready"]

    @property
    def failures(self) -> dict[str, str]:
        """Replica name -> why it is "failed"."""
        children = self._children.values()
        return {child.name: child.failure for child in children if child.state == "failed"}

    @property
    def pids(self) -> dict[str, int]:
        """Replica name -> process id, 0 between lives."""
        return {child.name: child.pid for child in self._children.values()}

    async def scale_to(self, replicas: int) -> None:
        if self._closed:
            raise DriverError("this driver is closed")
        if not 0 <= replicas <= self._replicas_max:
            raise DriverError(f"replicas must be in [0, {self._replicas_max}], was {replicas}")
        # Those that cannot live go first: a scale-in must not leave them instead of the healthy.
        staying = sorted(self._staying(), key=lambda i: self._children[i].state == "failed")
        for index in staying[replicas:]:
            self._stop(index)
        for _ in range(replicas - len(staying)):
            await self._start()

    async def replace(self, name: str, *, admitted: Admitted = at_once) -> Replica | None:
        """Start a new replica, then drain this one; returns the new one when the old one is gone.

        One process more than `scale_to` asked for runs meanwhile: capacity never falls. admitted:
        awaited with the new one's URL before the old one drains. None when the old one left
        meanwhile. Raises DriverError when the new one cannot live; then the old one stays, as it
        does when this call is cancelled in time.
        """
        old = self._index_of(name)
        async with self._spare() as new:
            await self._until_ready(new)
            await admitted(self._children[new].replica.url)
            if old not in self._staying():
                return None
            self._spares.discard(new)
            await asyncio.shield(self._stop(old))
        return self._children[new].replica if new in self._children else None

    async def until_settled(self) -> None:
        """Until every replica is ready or failed, and those that drain are gone."""
        while any(child.state in ("pending", "draining") for child in self._children.values()):
            await self._changed.wait()

    async def close(self) -> None:
        self._closed = True
        for index in sorted({*self._staying(), *self._spares}):
            self._stop(index)
        if self._stops:
            await asyncio.wait(self._stops)

    def kill(self) -> None:
        """SIGKILL to everything, at once: for the second Ctrl-C."""
        for child in self._children.values():
            child.kill()

    def _staying(self) -> list[int]:
        staying = (i for i, child in self._children.items() if child.state != "draining")
        return sorted(set(staying) - self._spares)

    def _index_of(self, name: str) -> int:
        for index in self._staying():
            if self._children[index].name == name:
                return index
        raise DriverError(f"there is no replica {name} that could be replaced")

    @contextlib.asynccontextmanager
    async def _spare(self) -> AsyncIterator[int]:
        """A new replica that is stopped at the end, unless it has taken another one's place."""
        if self._closed:
            raise DriverError("this driver is closed")
        index = await self._start(spare=True)
        try:
            yield index
        finally:
            if index in self._spares and not self._closed:
                self._stop(index)
            self._spares.discard(index)

    async def _until_ready(self, index: int) -> None:
        child = self._children.get(index)
        while child is not None and child.state != "ready":
            if child.state != "pending":
                raise DriverError(f"{child.name} cannot start: {child.failure or child.state}")
            await self._changed.wait()
        if child is None:
            raise DriverError(f"replica-{index} cannot start: it was stopped while it did")

    def _on_child(self, event: ChildEvent) -> None:
        self._wake()
        self._notify(event)

    def _wake(self) -> None:
        """A new event for whoever waits next: nobody's `clear` can swallow another one's news."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _start(self, *, spare: bool = False) -> int:
        index = next(i for i in range(len(self._children) + 1) if i not in self._children)
        port = self._port_first + index if self._port_first else 0
        child = Child(f"replica-{index}", port, self._plan, self._on_child)
        self._children[index] = child
        if spare:
            self._spares.add(index)
        try:
            await child.start()
        except (DriverError, asyncio.CancelledError):  # a cancelled start leaves no process
            self._children.pop(index, None)
            self._spares.discard(index)
            self._wake()
            raise
        return index

    def _stop(self, index: int) -> asyncio.Task[None]:
        task = asyncio.create_task(self._drain(index))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)
        # Draining from now on, not from when the task first runs: `replicas` must say so.
        self._children[index].state = "draining"
        return task

    async def _drain(self, index: int) -> None:
        await self._children[index].stop()
        self._children.pop(index, None)  # a start that failed meanwhile took it out
        self._wake()
