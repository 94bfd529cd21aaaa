"""Replicas as containers of a Compose service, through the engine's own API (the `docker` SDK).

Works with any engine that speaks Docker's API: Docker, or podman's socket. Containers carry
Compose's labels and names, so that `docker compose ps` shows them and those that Compose started
are counted here. Refuses to pull an image and to publish ports: the router reaches containers at
their own address in the service's network, or on the host's loopback with the network "host".

The engine restarts a container that dies (five times); stopping sends SIGTERM, upon which a
replica drains.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bul.errors import ConfigError, DriverError
from bul.scaling.drivers.fleet import Fleet, FleetLimits, Unit

__all__ = ["ComposePlan", "compose_driver"]

PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"
NUMBER, ONEOFF = "com.docker.compose.container-number", "com.docker.compose.oneoff"
RESTARTS = 5
LIST_TRIES = 4
THREADS = 8
WORDS_MAX = 300
STOP_MARGIN_S = 5.0
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ComposePlan:
    """One service. command: argv for a number and a port. volumes: (path here, path inside,
    "ro" or "rw"). network: of the containers; with "host", number i listens on port + i.
    drain_s: from SIGTERM to SIGKILL. engine: the socket's URL, "" for DOCKER_HOST or the default.
    """

    project: str
    service: str
    image: str
    command: Callable[[int], Sequence[str]]
    environ: Mapping[str, str]
    volumes: Sequence[tuple[str, str, str]] = ()
    network: str = "bridge"
    port: int = 8002
    drain_s: float = 35.0
    engine: str = ""
    call_s: float = 30.0
    replicas_max: int = 64


def compose_driver(plan: ComposePlan) -> Fleet:
    """A `Driver`. Raises ConfigError without the extra `compose`."""
    limits = FleetLimits(
        replicas_max=plan.replicas_max,
        call_s=plan.call_s,
        stop_s=plan.drain_s + plan.call_s + STOP_MARGIN_S,
    )
    return Fleet(_Containers(plan), limits)


class _Containers:
    """The backend. Its own threads: an engine that hangs must not take the loop's."""

    def __init__(self, plan: ComposePlan) -> None:
        try:
            import docker  # noqa: PLC0415 - an extra
            import docker.errors  # noqa: PLC0415 - of the extra
        except ImportError as error:
            hint = "pip install 'bul[compose]'"
            raise ConfigError("the compose driver needs the docker SDK", hint=hint) from error
        self._plan = plan
        self._docker = docker
        # requests' errors come through the SDK unwrapped; all of them are OSErrors.
        self._errors = (docker.errors.DockerException, OSError)
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, "bul-compose")
        self._lock = threading.Lock()
        self._made: Any = None

    @property
    def _client(self) -> Any:
        """Made at the first call, in its thread: it asks the engine for its version."""
        engine = self._plan.engine
        if engine.startswith("unix://") and not Path(engine.removeprefix("unix://")).exists():
            raise DriverError(f"no container engine listens on {engine}", hint="is it running?")
        with self._lock:
            if self._made is None:
                url = {"base_url": engine} if engine else {}
                make: Any = self._docker.DockerClient if engine else self._docker.from_env
                self._made = make(timeout=self._plan.call_s, **url)
            return self._made

    async def units(self) -> Sequence[Unit]:
        return await self._call("list containers", self._list)

    async def start(self, number: int) -> None:
        await self._call("start a container", self._start, number)

    async def stop(self, name: str) -> None:
        await self._call(f"stop {name}", self._stop, name)

    def kill(self, names: Sequence[str]) -> None:
        for name in names:
            self._threads.submit(self._kill, name)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._made is not None:
            self._made.close()

    async def _call(self, what: str, work: Callable[..., Result], *arguments: object) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, work, *arguments)
        except self._errors as error:
            raise DriverError(f"cannot {what}: {_words(error)}") from error

    def _list(self) -> list[Unit]:
        labels = [f"{PROJECT}={self._plan.project}", f"{SERVICE}={self._plan.service}"]
        found = self._summaries({"label": labels})
        units = []
        for summary in found:
            if summary["Labels"].get(ONEOFF, "False") == "True":
                continue
            with self._unless_gone():
                units.append(self._unit(self._client.api.inspect_container(summary["Id"])))
        return units

    def _summaries(self, filters: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        """Podman's listing fails as a whole when a container goes meanwhile: then once more."""
        for _ in range(LIST_TRIES - 1):
            with self._unless_gone():
                return list(self._client.api.containers(all=True, filters=filters))
        return list(self._client.api.containers(all=True, filters=filters))

    @contextlib.contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Passes over a container that went meanwhile: a 404 of Docker, a 500 of podman."""
        try:
            yield
        except self._docker.errors.APIError as error:
            gone = isinstance(error, self._docker.errors.NotFound)
            if not gone and "no such container" not in str(error):
                raise

    def _unit(self, facts: Mapping[str, Any]) -> Unit:
        number = int(facts["Config"]["Labels"].get(NUMBER, "1")) - 1
        state, name = facts["State"], facts["Name"].lstrip("/")
        url = self._url(facts, number) if state["Status"] == "running" else ""
        failure = ""
        if state["Status"] in ("exited", "dead", "stopped"):
            failure = f"exit code {state.get('ExitCode')}; {self._last_words(facts['Id'])}"
        return Unit(name=name, number=number, url=url, failure=failure)

    def _url(self, facts: Mapping[str, Any], number: int) -> str:
        if self._plan.network == "host":
            return f"http://127.0.0.1:{self._plan.port + number}"
        networks = facts["NetworkSettings"]["Networks"] or {}
        addresses = [one.get("IPAddress") for one in networks.values() if one.get("IPAddress")]
        return f"http://{addresses[0]}:{self._plan.port}" if addresses else ""

    def _last_words(self, identity: str) -> str:
        with contextlib.suppress(*self._errors):
            said = self._client.api.logs(identity, tail=3).decode(errors="replace").split("\n")
            lines = [line for line in said if line.strip()]
            return f"its last words: {lines[-1][:WORDS_MAX]}" if lines else "it said nothing"
        return "its log cannot be read"

    def _start(self, number: int) -> None:
        plan = self._plan
        host = plan.network == "host"
        container = self._client.containers.create(
            plan.image,
            list(plan.command(plan.port + number if host else plan.port)),
            name=f"{plan.project}-{plan.service}-{number + 1}",
            labels={
                PROJECT: plan.project,
                SERVICE: plan.service,
                NUMBER: str(number + 1),
                ONEOFF: "False",
            },
            environment=dict(plan.environ),
            volumes={here: {"bind": there, "mode": mode} for here, there, mode in plan.volumes},
            restart_policy={"Name": "on-failure", "MaximumRetryCount": RESTARTS},
            detach=True,
            **({"network_mode": "host"} if host else {"network": plan.network}),
        )
        try:
            container.start()
        except self._errors:
            with contextlib.suppress(*self._errors):
                container.remove(force=True)
            raise

    def _stop(self, name: str) -> None:
        with self._unless_gone():
            container = self._client.containers.get(name)
            container.stop(timeout=int(self._plan.drain_s))
            container.remove(v=True, force=True)

    def _kill(self, name: str) -> None:
        with contextlib.suppress(*self._errors):
            self._client.containers.get(name).remove(v=True, force=True)


def _words(error: BaseException) -> str:
    """The engine's own explanation where there is one, on one line."""
    text = str(getattr(error, "explanation", "") or error)
    return " ".join(text.split())[:WORDS_MAX]
