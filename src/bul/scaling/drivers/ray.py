"""Replicas on the nodes of a Ray cluster: one actor each, which runs `bul serve` beside itself.

Refuses to serve through Ray: the actor only starts, watches and drains the process; requests go
from the router to the replica's own port. Actors have names and outlive this driver, so that a
supervisor that returns finds them; Ray starts an actor again whose node died, on another node.
BUL must be installed on every node. What goes over Ray's own wire are names, numbers and strings.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from bul.errors import ConfigError, DriverError
from bul.scaling.drivers.fleet import Fleet, FleetLimits, Unit
from bul.scaling.drivers.ray_host import ReplicaHost

__all__ = ["RayPlan", "ray_driver"]

PREFIX = "bul-replica-"
THREADS = 8
INFO_S = 1.0
"""A live actor answers in milliseconds; one that Ray has yet to place does not answer."""
STOP_MARGIN_S = 5.0
CALLS_AT_ONCE = 4
Result = TypeVar("Result")


def _serve(host: str) -> list[str]:
    return ["-m", "bul", "serve", "--host", host, "--port", "0"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RayPlan:
    """cpus, gpus: that one replica reserves on its node. command: arguments of the node's Python,
    for the node's address; the replica must print its ready line as JSON.
    """

    address: str = "auto"
    namespace: str = "bul"
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cpus: float = 1.0
    gpus: float = 0.0
    command: Callable[[str], list[str]] = _serve
    drain_s: float = 35.0
    call_s: float = 30.0
    replicas_max: int = 64


def ray_driver(plan: RayPlan) -> Fleet:
    """A `Driver`. Raises ConfigError without the extra `ray`."""
    limits = FleetLimits(
        replicas_max=plan.replicas_max,
        call_s=plan.call_s,
        stop_s=plan.drain_s + plan.call_s + STOP_MARGIN_S,
    )
    return Fleet(_Actors(plan), limits)


class _Actors:
    """The backend. Ray's calls block, so each is made in a thread of this backend's own."""

    def __init__(self, plan: RayPlan) -> None:
        try:
            import ray  # noqa: PLC0415 - an extra
            import ray.exceptions  # noqa: PLC0415 - of the extra
        except ImportError as error:
            hint = "pip install 'bul[ray]'"
            raise ConfigError("the ray driver needs Ray", hint=hint) from error
        self._plan = plan
        self._ray: Any = ray
        # Ray says "no such actor" and "already taken" with ValueError.
        self._errors = (ray.exceptions.RayError, ValueError, RuntimeError, OSError)
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, "bul-ray")
        self._joining = asyncio.Lock()
        self._joined = False

    async def units(self) -> Sequence[Unit]:
        return await self._call("list the actors", self._list)

    async def start(self, number: int) -> None:
        await self._call("start an actor", self._start, number)

    async def stop(self, name: str) -> None:
        await self._call(f"stop {name}", self._stop, name)

    def kill(self, names: Sequence[str]) -> None:
        for name in names:
            self._threads.submit(self._kill, name)

    async def close(self) -> None:
        """Leaves the cluster, if this driver joined it."""
        if self._joined:
            self._joined = False
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._ray.shutdown)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _call(self, what: str, work: Callable[..., Result], *arguments: object) -> Result:
        loop = asyncio.get_running_loop()
        try:
            async with self._joining:
                await loop.run_in_executor(self._threads, self._join)
            return await loop.run_in_executor(self._threads, work, *arguments)
        except self._errors as error:
            said = " ".join(str(error).split())[:300]
            raise DriverError(f"cannot {what}: {said}") from error

    def _join(self) -> None:
        if not self._ray.is_initialized():
            self._ray.init(
                address=self._plan.address,
                namespace=self._plan.namespace,
                log_to_driver=False,
                configure_logging=False,
            )
            self._joined = True

    def _list(self) -> list[Unit]:
        named = self._ray.util.list_named_actors(all_namespaces=True)
        names = [
            one["name"]
            for one in named
            if one["namespace"] == self._plan.namespace and one["name"].startswith(PREFIX)
        ]
        asked = {}
        for name in names:
            with contextlib.suppress(ValueError):  # it has gone meanwhile
                asked[self._actor(name).info.remote()] = name
        answered, silent = (
            self._ray.wait(list(asked), num_returns=len(asked), timeout=INFO_S)
            if asked
            else ([], [])
        )
        units = [_unit(asked[reference], {}) for reference in silent]
        for reference in answered:
            with contextlib.suppress(self._ray.exceptions.ActorDiedError):
                units.append(_unit(asked[reference], self._info(reference)))
        return units

    def _info(self, reference: Any) -> Mapping[str, str]:
        try:
            info: Mapping[str, str] = self._ray.get(reference, timeout=INFO_S)
        except self._ray.exceptions.ActorUnavailableError:
            return {}  # between two lives
        return info

    def _actor(self, name: str) -> Any:
        return self._ray.get_actor(name, namespace=self._plan.namespace)

    def _start(self, number: int) -> None:
        plan = self._plan
        actor = self._ray.remote(_Host).options(
            name=f"{PREFIX}{number}",
            namespace=plan.namespace,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=CALLS_AT_ONCE,
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            scheduling_strategy="SPREAD",
        )
        actor.remote(plan.command(NODE), dict(plan.environ))

    def _stop(self, name: str) -> None:
        with contextlib.suppress(ValueError, self._ray.exceptions.RayActorError):
            actor = self._actor(name)
            limit_s = self._plan.drain_s + self._plan.call_s
            with contextlib.suppress(self._ray.exceptions.GetTimeoutError):
                self._ray.get(actor.stop.remote(self._plan.drain_s), timeout=limit_s)
            self._ray.kill(actor, no_restart=True)

    def _kill(self, name: str) -> None:
        with contextlib.suppress(*self._errors):
            self._ray.kill(self._actor(name), no_restart=True)


NODE = "{node}"
"""In a command: the address of the node that the actor was placed on."""


class _Host(ReplicaHost):
    """The actor. Knows its node's address only there."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        import ray  # noqa: PLC0415 - on the node

        address = ray.util.get_node_ip_address()
        super().__init__([part.replace(NODE, address) for part in command], environ)

    def node(self) -> str:
        """The node's id."""
        import ray  # noqa: PLC0415 - on the node

        return str(ray.get_runtime_context().get_node_id())


def _unit(name: str, info: Mapping[str, str]) -> Unit:
    number = int(name.removeprefix(PREFIX))
    return Unit(name=name, number=number, url=info.get("url", ""), failure=info.get("failure", ""))
