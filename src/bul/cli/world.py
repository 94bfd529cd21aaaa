r"""`bul up --regions`: several regions on one machine, joined by links as long as an ocean.

Refuses to be a special case inside a region: each is a `bul up` and a `bul regions serve` of its
own, with its own folder, as on its own machine. What only one machine can have is here: the fault
proxies between them (`regions/wan.py`), and in front of each region a door.

    client -> door of us-east (a router, HTTP) -> us-east's router -> its replicas
                                       \-- only if that has nobody: WAN -> eu-west's router

A door sends to its own region while that has replicas; a request that finds none there goes to the
other region before its first byte, so nobody has to ask twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import socket
import typing
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bul.cli.regions import WORLD_FILE, AgentAddress
from bul.cli.world_child import Child
from bul.config import RouteConfig, Settings, child_environment
from bul.errors import ConfigError, DriverError
from bul.regions.agent import check_config
from bul.regions.wan import FaultProxy, Faults
from bul.router.judge import Judge
from bul.router.prompt import Prompt
from bul.router.rates import Rates
from bul.router.replica import Replica

if typing.TYPE_CHECKING:
    from bul.cli.events import EventLog
    from bul.router.app import Router

__all__ = ["HomeFirst", "World", "run_world"]

READY_S = 240.0
POLL_S = 0.01


@dataclasses.dataclass(slots=True)
class _Place:
    """One region: where its parts listen, and its children."""

    name: str
    folder: Path
    agent_port: int
    router_port: int
    children: list[Child]
    door: Router | None = None

    @property
    def home(self) -> str:
        """The URL of its own router."""
        return f"http://127.0.0.1:{self.router_port}"

    @property
    def is_open(self) -> bool:
        """Its door has found its own router ready."""
        return self.door is not None and any(one.url == self.home for one in self.door.ready)


class HomeFirst(Judge):
    """Considers strangers only when nobody of home is left. home: URL of the region's router."""

    def __init__(self, config: RouteConfig, rates: Rates, home: str) -> None:
        super().__init__(config, rates)
        self._home = home

    def pick(
        self, ready: Sequence[Replica], prompt: Prompt, tried: Sequence[Replica], now_s: float
    ) -> Replica | None:
        """As the judge's own."""
        home = [one for one in ready if one.url == self._home and one not in tried]
        return super().pick(home or ready, prompt, tried, now_s)


class World:
    """start, wait_ready, close. One event loop. folder: the locked state folder."""

    def __init__(self, settings: Settings, events: EventLog, folder: Path) -> None:
        self._settings = settings
        self._events = events
        self._folder = folder
        self._secret = settings.regions.peer_secret or secrets.token_hex(32)
        self._stack = contextlib.AsyncExitStack()
        names = settings.regions.world
        ports = _free_ports(2 * len(names))
        self._places = [
            _Place(name, folder / name, ports[2 * at], ports[2 * at + 1], [])
            for at, name in enumerate(names)
        ]
        self.wan: dict[tuple[str, str], list[FaultProxy]] = {}
        """(from, to) -> the links to the other's agent and router."""

    @property
    def urls(self) -> dict[str, str]:
        """Of the doors."""
        return {place.name: place.door.url for place in self._places if place.door is not None}

    @property
    def homes(self) -> dict[str, str]:
        """Of the regions' own routers, behind the doors."""
        return {place.name: place.home for place in self._places}

    async def start(self) -> None:
        """Open the links, start all children and doors. Raises ConfigError."""
        for place in self._places:
            for other in self._places:
                if other is not place:
                    await self._link(place, other)
        for place in self._places:
            self._start_children(place)
        for number, place in enumerate(self._places):
            await self._open_door(place, number)
        self._write_file()

    async def wait_ready(self) -> None:
        """Until all regions are, or DriverError."""
        try:
            async with asyncio.timeout(READY_S):
                for place in self._places:
                    for child in place.children:
                        await child.ready.wait()
                    while not place.is_open:  # noqa: ASYNC110 - probes have no event to wait for
                        await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise DriverError(f"the regions were not ready within {READY_S:.0f} s") from None

    async def close(self) -> None:
        """Children first, all at the same time; then doors and links."""
        children = [child for place in self._places for child in place.children]
        await asyncio.gather(*(child.stop() for child in children))
        for place in self._places:
            if place.door is not None:
                await place.door.stop(drain_s=0.5)
        await self._stack.aclose()
        (self._folder / WORLD_FILE).unlink(missing_ok=True)

    def kill(self) -> None:
        for place in self._places:
            for child in place.children:
                child.kill()

    async def _link(self, place: _Place, other: _Place) -> None:
        delay_s = self._settings.regions.wan_rtt_ms / 2000
        links = self.wan[place.name, other.name] = []
        for port in (other.agent_port, other.router_port):
            proxy = await self._stack.enter_async_context(FaultProxy("127.0.0.1", port))
            proxy.to_client = proxy.to_server = Faults(delay_s=delay_s)
            links.append(proxy)

    def _start_children(self, place: _Place) -> None:
        place.folder.mkdir(mode=0o700, exist_ok=True)
        changes = self._changes(place) | self._shared(place)
        environ = child_environment(self._settings, changes)
        for arguments in (["regions", "serve"], ["up"]):
            child = Child(arguments, environ, lambda said, name=place.name: self._tell(name, said))  # type: ignore[misc]  # a bound loop variable
            place.children.append(child)
            child.start()

    def _shared(self, place: _Place) -> dict[str, object]:
        """A Valkey for each region, started here, since its agent must know it as well."""
        from bul.cli.shared_server import shared_cache

        if not self._settings.up.shared:
            return {}
        server = shared_cache(self._settings, place.folder, self._events)
        url = self._stack.enter_context(server).cache.shared_url
        return {"up.shared": False, "cache.shared_url": url}

    def _changes(self, place: _Place) -> dict[str, object]:
        others = [other.name for other in self._places if other is not place]
        peers = tuple(f"{other}={self.wan[place.name, other][0].url}" for other in others)
        # Told outright, so that a fixed port of this command's own does not reach the children.
        return {
            "regions.world": (),
            "regions.name": place.name,
            "regions.host": "127.0.0.1",
            "regions.port": place.agent_port,
            "regions.peers": peers,
            "regions.peer_secret": self._secret,
            "route.host": "127.0.0.1",
            "route.port": place.router_port,
            "serve.port": 0,
            "up.state_dir": str(place.folder),
            "up.log_format": "json",
        } | ({"cache.persistence_dir": ""} if self._settings.cache.persistence_dir else {})

    async def _open_door(self, place: _Place, number: int) -> None:
        others = [links[1].url for (name, _), links in self.wan.items() if name == place.name]
        port = self._settings.route.port
        route = dataclasses.replace(
            self._settings.route,
            port=port + number if port else 0,
            policy="least_conn",
            replicas=(place.home, *others),
            block_events=False,
        )
        settings = dataclasses.replace(self._settings, route=route)
        try:
            place.door = await self._started(settings, place.home)
        except ConfigError:
            if self._settings.origin("route.port") != "default":
                raise
            free = dataclasses.replace(settings, route=dataclasses.replace(route, port=0))
            place.door = await self._started(free, place.home)

    async def _started(self, settings: Settings, home: str) -> Router:
        from bul.cli.route import make_router

        door = make_router(settings)
        door.judge = HomeFirst(door.config, door.rates, home)
        await door.start()
        return door

    def _tell(self, region: str, said: dict[str, typing.Any]) -> None:
        event, text = str(said.pop("event", "said")), str(said.pop("text", ""))
        said.pop("time_s", None)
        if event == "ready":
            event = "region_part_ready"
        self._events.emit(event, f"{region}: {text}", **(said | {"region": region}))

    def _write_file(self) -> None:
        """For `bul regions`; the secret is in it, so it is its owner's alone."""
        agents = [
            AgentAddress(
                place.name,
                f"http://127.0.0.1:{place.agent_port}",
                self._secret,
                self.urls[place.name],
            )
            for place in self._places
        ]
        path = self._folder / WORLD_FILE
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(agents))


async def run_world(settings: Settings, events: EventLog, folder: Path) -> None:
    """Until somebody asks to stop."""
    from bul.cli.signals import StopSignals

    if len(settings.regions.world) < 2:
        raise ConfigError("a world has two regions at least", hint="--regions us-east,eu-west")
    if settings.cache.shared_url:
        hint = "--shared starts one for each region"
        raise ConfigError("shared_url would be one Valkey for all regions", hint=hint)
    for name in settings.regions.world:
        others = tuple(f"{o}=http://127.0.0.1:1" for o in settings.regions.world if o != name)
        secret = "s" * 32
        check_config(
            dataclasses.replace(
                settings.regions, name=name, peers=others, peer_secret=secret, world=()
            )
        )
    world = World(settings, events, folder)
    with StopSignals(on_second=world.kill) as stop:
        try:
            await world.start()
            if await stop.race(world.wait_ready()):
                doors = ", ".join(f"{name} on {url}" for name, url in world.urls.items())
                rtt_ms = settings.regions.wan_rtt_ms
                text = f"ready: {doors}; {rtt_ms:.0f} ms between them"
                events.emit("ready", text, urls=world.urls, wan_rtt_ms=rtt_ms)
                await stop.wait()
            events.emit("stopping", "stopping: running answers finish first, Ctrl-C again kills")
        finally:
            await world.close()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
