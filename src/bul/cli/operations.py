"""What a running region can be told to do: status, restart, scale.

Refuses two changes at a time: a second one gets an error that names the first.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing
from collections.abc import Iterator, Mapping

from bul.cli.control import Handler, Progress
from bul.errors import DriverError

if typing.TYPE_CHECKING:
    from bul.cli.region import Region
    from bul.cli.scaler import RegionScaler

__all__ = ["Operations"]

Request = Mapping[str, typing.Any]


class Operations:
    """The control socket's commands, over one region."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._under_way = ""

    @property
    def handlers(self) -> dict[str, Handler]:
        """Command -> handler; each takes the request and a progress callback."""
        return {
            "status": self.status,
            "restart": self.restart,
            "scale": self.scale,
            "scale_watch": self.scale_watch,
        }

    async def status(self, _request: Request, _progress: Progress) -> dict[str, object]:
        """The router, the replicas as the driver has them, and which of them the router uses."""
        region = self._region
        pids, used = region.pids, region.urls_used
        replicas = [
            {
                "name": replica.name,
                "url": replica.url,
                "state": replica.state,
                "pid": pids.get(replica.name, 0),
                "routed": replica.url in used,
            }
            for replica in await region.driver.replicas()
        ]
        under_way = self._under_way or None
        pid = os.getpid()
        return {
            "pid": pid,
            "url": region.url,
            "under_way": under_way,
            "limits": region.limits,
            "replicas": replicas,
        }

    async def restart(self, _request: Request, progress: Progress) -> dict[str, object]:
        """Replace all replicas, one at a time; the first that cannot live ends it.

        Surge, not drain first: with two replicas, draining first would halve the capacity.
        Cancelled at any point, it leaves as many replicas as there were.
        """
        began_s = time.monotonic()
        replaced = []
        with self._alone("restart"):
            driver = self._region.driver
            names = [found.name for found in await driver.replicas() if found.state != "draining"]
            for number, name in enumerate(names, 1):
                progress(f"{name}: starting its replacement ({number} of {len(names)})")
                new = await driver.replace(name, admitted=self._region.wait_admitted)
                if new is None:
                    progress(f"{name}: left meanwhile")
                    continue
                progress(f"{name}: drained; {new.name} serves at {new.url}")
                replaced.append({"old": name, "new": new.name, "url": new.url})
        return {"replaced": replaced, "seconds": round(time.monotonic() - began_s, 2)}

    async def scale(self, request: Request, progress: Progress) -> dict[str, object]:
        """Start or drain replicas until there are `replicas` of them, ready."""
        replicas = request.get("replicas")
        if type(replicas) is not int or replicas < 1:
            raise DriverError(f"replicas must be a number from 1 on, was {replicas!r}")
        driver, scaler = self._region.driver, self._region.scaler
        with self._alone("scale", scaling=True):
            before = [found for found in await driver.replicas() if found.state != "draining"]
            progress(f"from {len(before)} to {replicas} replicas")
            if scaler is None:
                await driver.scale_to(replicas)
            else:
                await self._scale_by_hand(scaler, replicas)
                progress("the scaler goes on from there, and may change it again")
            await self._region.until_settled()
            for replica in await driver.replicas():
                await self._region.wait_admitted(replica.url)
        return {"replicas": replicas, "before": len(before)}

    async def _scale_by_hand(self, scaler: RegionScaler, replicas: int) -> None:
        decision = await scaler.scaler.scale_to(replicas)
        if decision.replicas != replicas:
            hint = "its limits are --min-replicas and --max-replicas"
            raise DriverError(f"the scaler refuses: {decision.reason}", hint=hint)
        if scaler.scaler.finding:
            raise DriverError(scaler.scaler.finding)

    async def scale_watch(self, _request: Request, progress: Progress) -> dict[str, object]:
        """Tells every decision as it is made, until the client leaves or the region ends."""
        scaler = self._region.scaler
        if scaler is None:
            raise DriverError("this region does not scale by itself", hint="bul up --max-replicas")
        with scaler.watching() as records:
            while True:
                record = await records.get()
                progress(record.line(), record=record.document())

    @contextlib.contextmanager
    def _alone(self, what: str, *, scaling: bool = False) -> Iterator[None]:
        """One change at a time; the scaler holds meanwhile, unless it is what changes."""
        if self._under_way:
            hint = "wait for its end, or end it with Ctrl-C where it runs"
            raise DriverError(f"a {self._under_way} is under way", hint=hint)
        self._under_way = what
        scaler = self._region.scaler
        if scaler is not None and not scaling:
            scaler.scaler.paused = f"a {what} is under way"
        try:
            yield
        finally:
            self._under_way = ""
            if scaler is not None:
                scaler.scaler.paused = ""
