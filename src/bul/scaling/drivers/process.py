"""Replicas as supervised child processes of this one: the driver of `bul up`.

Refuses to leave anything behind: what it started ends with it, even if it is killed itself.
The children are tied to the *thread* that starts them (Linux's PR_SET_PDEATHSIG), so the driver
belongs on the main thread's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bul.errors import DriverError
from bul.scaling.drivers.child import Child, ChildEvent, ChildPlan
from bul.scaling.drivers.contract import Replica

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
        staying = self._staying()
        for index in staying[replicas:]:
            self._stop(index)
        for _ in range(replicas - len(staying)):
            await self._start()

    async def close(self) -> None:
        self._closed = True
        for index in self._staying():
            self._stop(index)
        if self._stops:
            await asyncio.wait(self._stops)

    def kill(self) -> None:
        """SIGKILL to everything, at once: for the second Ctrl-C."""
        for child in self._children.values():
            child.kill()

    def _staying(self) -> list[int]:
        return sorted(i for i, child in self._children.items() if child.state != "draining")

    async def _start(self) -> None:
        index = next(i for i in range(len(self._children) + 1) if i not in self._children)
        port = self._port_first + index if self._port_first else 0
        child = Child(f"replica-{index}", port, self._plan, self._notify)
        self._children[index] = child
        try:
            await child.start()
        except DriverError:
            del self._children[index]
            raise

    def _stop(self, index: int) -> None:
        task = asyncio.create_task(self._drain(index))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)
        # Draining from now on, not from when the task first runs: `replicas` must say so.
        self._children[index].state = "draining"

    async def _drain(self, index: int) -> None:
        await self._children[index].stop()
        del self._children[index]
