"""A region on this machine: the router in this process, its replicas as supervised children.

Refuses to keep a second list of replicas: what the driver says is what the router gets, at every
change (docs/decisions: the router runs in the supervisor's process).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bul.accounts.book import RegionBook
from bul.cli.control import Control
from bul.cli.dashboard import start_dashboard
from bul.cli.drivers import Members, make_driver
from bul.cli.events import EventLog
from bul.cli.operations import Operations
from bul.cli.persistence import persistence
from bul.cli.region_books import RegionBooks
from bul.cli.region_peers import RegionPeers
from bul.cli.route import make_router
from bul.cli.scaler import RegionScaler, scale_limits
from bul.cli.tracing import Tracing
from bul.config import Settings, child_environment
from bul.errors import ConfigError, DriverError
from bul.router.app import Router
from bul.scaling.drivers.child import ChildEvent, ChildPlan
from bul.scaling.drivers.contract import Replica
from bul.scaling.drivers.process import ProcessDriver

__all__ = ["Region"]

READY_S = 180.0
ROUTER_POLL_S = 0.01
LOOK_AGAIN_S = 0.5
ROUTER_DRAIN_S = 1.0
"""For answers that the replicas have finished and the clients not yet read."""
ADMIT_S = 10.0
"""From a replica's own "ready" to the router's."""
STOP_MARGIN_S = 5.0
"""From the end of a replica's own drain to SIGKILL."""


class Region:
    """Start it, wait until it is ready, close it. One event loop, on the main thread.

    events gets a line per event. folder: the locked state folder. keys: those of the settings, and
    of the database. book: what is written of it there, if anything is. traces: of the router; the
    replicas make their own.
    """

    def __init__(
        self,
        settings: Settings,
        events: EventLog,
        folder: Path,
        keys: Mapping[str, str] | None = None,
        book: RegionBook | None = None,
        traces: Tracing | None = None,
    ) -> None:
        self._keys = settings.keys if keys is None else keys
        self._traces = traces
        self._settings = settings = _with_resume_secret(settings)
        self._events = events
        self._changed = asyncio.Event()
        self._router: Router | None = None
        self._folder = folder
        self._limits = scale_limits(settings)
        self._dashboard: asyncio.Task[None] | None = None
        self.scaler: RegionScaler | None = None
        """Once started, when one was asked for."""
        self._processes: ProcessDriver | None = None
        replicas_max = max(settings.up.replicas_max, self._replicas_max)
        self.driver = make_driver(settings, replicas_max, lambda: self._process_driver(folder))
        self._members = Members(self.driver, self._on_member)
        self._following: asyncio.Task[None] | None = None
        self._peers = RegionPeers(settings)
        self._books = RegionBooks(book, self.driver, self._leads)
        self._control = Control(folder, Operations(self).handlers)

    @property
    def url(self) -> str:
        """Of the router."""
        assert self._router is not None, "start the region first"
        return self._router.url

    @property
    def urls_used(self) -> frozenset[str]:
        """Of the replicas that the router sends to."""
        assert self._router is not None, "start the region first"
        return frozenset(replica.url for replica in self._router.ready)

    @property
    def pids(self) -> dict[str, int]:
        """Of replicas that are processes of this machine."""
        return {} if self._processes is None else self._processes.pids

    @property
    def replicas_first(self) -> int:
        """How many it starts with."""
        wanted, limits = self._settings.up.replicas, self._limits
        if limits is None:
            return wanted
        return min(max(wanted, limits.min_replicas), limits.max_replicas)

    async def start(self) -> None:
        """Listen and start the replicas; returns before they are ready.

        Raises ConfigError (a port that was asked for is taken), DriverError.
        """
        await self._control.start()
        await self._start_router()
        self._events.emit("router_listening", f"router listens on {self.url}", url=self.url)
        await self._start_replicas()
        await self._start_scaler()
        self._books.start()
        self._start_dashboard()

    def _start_dashboard(self) -> None:
        assert self._router is not None
        self._peers.start()
        scaler_text = self._router.more_metrics
        self._router.more_metrics = lambda: scaler_text() + self._books.text()
        self._dashboard = start_dashboard(
            self._router,
            self._settings,
            name=f"BUL {self._settings.regions.name} on {self.url}".replace("  ", " "),
            decisions=self._decisions,
            regions=self._peers.rows,
            hours=self._books.hours,
        )

    def _leads(self) -> bool:
        return self.scaler is None or self.scaler.leads

    def _decisions(self) -> list[dict[str, object]]:
        return [] if self.scaler is None else self.scaler.shown()

    async def _start_replicas(self) -> None:
        """Those of another driver may be there already: with a scaler they are left alone."""
        replicas = await self.driver.replicas()
        if self._limits is None or not replicas:
            await self.driver.scale_to(self.replicas_first)
        if self._processes is None:
            self._following = asyncio.create_task(self._members.run())

    async def wait_ready(self) -> Sequence[Replica]:
        """The replicas, once all are ready. Raises DriverError when one cannot live."""
        try:
            async with asyncio.timeout(READY_S):
                while True:
                    self._changed.clear()
                    replicas = await self.driver.replicas()
                    if replicas and all(replica.state == "ready" for replica in replicas):
                        await self._router_sees(len(replicas))
                        return replicas
                    raise_failures(replicas)
                    await self._change()
        except TimeoutError:
            raise DriverError(f"the replicas were not ready within {READY_S:.0f} s") from None

    async def crash(self) -> int:
        """SIGKILL to every replica, as when the machine loses them all; how many.

        Returns once all of them are gone; `wait_ready` then waits for their next lives.
        """
        before = self.pids
        self.driver.kill()
        while before.items() & self.pids.items():
            self._changed.clear()
            await self._change()
        return len(before)

    async def close(self) -> None:
        """Drain the replicas, then stop listening. No process is left."""
        await self._control.stop()
        if self._dashboard is not None:
            self._dashboard.cancel()
            await asyncio.gather(self._dashboard, return_exceptions=True)
        await self._peers.close()
        if self.scaler is not None:
            await self.scaler.close()
        await self.driver.close()
        await self._books.close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._router is not None:
            await self._router.stop(drain_s=ROUTER_DRAIN_S)

    def kill(self) -> None:
        """Do not wait for running answers any more."""
        self.driver.kill()

    async def until_settled(self) -> None:
        """Until no replica starts or drains. Raises DriverError when one cannot live."""
        while True:
            self._changed.clear()
            replicas = await self.driver.replicas()
            if not any(one.state in ("pending", "draining") for one in replicas):
                return raise_failures(replicas)
            await self._change()

    async def _change(self) -> None:
        """Until something changed; soon in any case, since others wait on the same event."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), LOOK_AGAIN_S)

    def _process_driver(self, folder: Path) -> ProcessDriver:
        settings = self._settings
        self._processes = ProcessDriver(
            self._plan(folder),
            port_first=settings.serve.port,
            replicas_max=max(settings.up.replicas_max, self._replicas_max),
            notify=self._on_child,
        )
        return self._processes

    def _plan(self, folder: Path) -> ChildPlan:
        settings = self._settings
        kept = persistence(settings, folder)
        if kept.problem:
            self._events.emit("persistence_off", kept.problem)
        changes = {"serve.threads": self._threads(), "up.log_format": "json"} | kept.changes
        changes |= {"route.resume_secret": settings.route.resume_secret}
        return ChildPlan(
            command=_serve_command,
            environ=child_environment(settings, changes),
            log_dir=folder / "logs",
            host=settings.serve.host,
            ready_s=READY_S,
            kill_after_s=settings.serve.drain_s + STOP_MARGIN_S,
        )

    def _threads(self) -> int:
        """Of one replica: what was asked for, else a fair share of the cores."""
        cores = len(os.sched_getaffinity(0))
        return self._settings.serve.threads or max(1, cores // self._replicas_max)

    @property
    def limits(self) -> tuple[int, int]:
        """The fewest and the most replicas that it may have."""
        limits = self._limits
        if limits is None:
            return 1, self._settings.up.replicas_max
        return limits.min_replicas, limits.max_replicas

    @property
    def _replicas_max(self) -> int:
        limits = self._limits
        return self._settings.up.replicas if limits is None else limits.max_replicas

    async def _start_scaler(self) -> None:
        limits, router = self._limits, self._router
        if limits is None or router is None:
            return
        self.scaler = RegionScaler(
            self._settings, limits, self.driver, router, self._folder, self._books.note
        )
        await self.scaler.start(self._events)
        between = f"{limits.min_replicas} to {limits.max_replicas} replicas"
        does = "advises only" if self._settings.scale.advise else "scales"
        policy = self._settings.scale.policy
        self._events.emit("scaler_started", f"policy {policy} {does}: {between}", policy=policy)

    async def _router_sees(self, replicas: int) -> None:
        """Until the router's own probes have found as many replicas ready."""
        assert self._router is not None
        while len(self._router.ready) < replicas:  # noqa: ASYNC110 - probes have no event to wait for
            await asyncio.sleep(ROUTER_POLL_S)

    async def wait_admitted(self, url: str) -> None:
        """Until the router sends to this replica. Raises DriverError after ADMIT_S."""
        try:
            async with asyncio.timeout(ADMIT_S):
                while url not in self.urls_used:  # noqa: ASYNC110 - probes have no event
                    await asyncio.sleep(ROUTER_POLL_S)
        except TimeoutError:
            raise DriverError(f"the router has not found {url} ready in {ADMIT_S:.0f} s") from None

    async def _start_router(self) -> None:
        settings, port = self._settings, self._settings.route.port
        self._router = make_router(settings, self._keys, self._traces)
        try:
            await self._router.start()
        except ConfigError:
            if settings.origin("route.port") != "default":
                raise
            text = f"port {port} is taken: the router takes a free one"
            self._events.emit("router_port_taken", text, port=port)
            free = dataclasses.replace(settings.route, port=0)
            settings = dataclasses.replace(settings, route=free)
            self._router = make_router(settings, self._keys, self._traces)
            await self._router.start()

    def _on_child(self, event: ChildEvent) -> None:
        replica = event.replica
        facts = {"replica": replica.name, "url": replica.url, "state": replica.state}
        self._events.emit(f"replica_{event.kind}", event.text, pid=event.pid, **facts)
        assert self._processes is not None
        self._route_to(self._processes.ready_urls)

    def _on_member(self, replica: Replica) -> None:
        text = f"{replica.name} is {replica.state}" + (f" at {replica.url}" if replica.url else "")
        facts = {"replica": replica.name, "url": replica.url, "state": replica.state}
        self._events.emit(f"replica_{replica.state}", f"{text} {replica.failure}".strip(), **facts)
        self._route_to(self._members.ready_urls)

    def _route_to(self, urls: Sequence[str]) -> None:
        self._changed.set()
        if self._router is not None:
            self._router.set_replicas((*self._settings.route.replicas, *urls))


def raise_failures(replicas: Sequence[Replica]) -> None:
    """Raises DriverError for the first replica that cannot live."""
    for replica in replicas:
        if replica.state == "failed":
            raise DriverError(f"{replica.name} cannot start: {replica.failure}")


def _with_resume_secret(settings: Settings) -> Settings:
    """One of this region's life, if none is configured: streams shall survive a replica."""
    if settings.resume_secret:
        return settings
    route = dataclasses.replace(settings.route, resume_secret=secrets.token_hex(32))
    return dataclasses.replace(settings, route=route)


def _serve_command(port: int) -> Sequence[str]:
    return [sys.executable, "-m", "bul", "serve", "--port", str(port)]
