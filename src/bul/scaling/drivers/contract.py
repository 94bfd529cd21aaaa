"""The driver contract: the only way in which replicas come and go."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol

__all__ = ["Admitted", "Driver", "Replica", "ReplicaState", "at_once"]

Admitted = Callable[[str], Awaitable[None]]
"""Awaited with a replica's URL: returns once the router sends to it."""


async def at_once(_: str) -> None:
    """Nobody has to admit it."""


ReplicaState = Literal["pending", "ready", "draining", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One service process as the driver sees it. `url` is without a trailing slash.

    failure: why it is "failed", else "".
    """

    name: str
    url: str
    state: ReplicaState
    failure: str = ""


class Driver(Protocol):
    """Starts and stops replicas. Calls may be repeated: they state a wish, not a step."""

    async def replicas(self) -> Sequence[Replica]:
        """What exists now, pending and draining ones included. Raises DriverError."""
        ...

    async def scale_to(self, replicas: int) -> None:
        """Return when `replicas` are started or draining down; not when they are ready.

        Scale-in drains first. Raises DriverError; then the caller must ask `replicas` again.
        """
        ...

    async def replace(self, name: str, *, admitted: Admitted = at_once) -> Replica | None:
        """Start a new replica, then drain this one; returns the new one when the old one is gone.

        Capacity never falls: the new one is ready and admitted before the old one drains. None
        when the old one left meanwhile. Raises DriverError when the new one cannot live; then the
        old one stays, as it does when this call is cancelled before it drains.
        """
        ...

    async def close(self) -> None:
        """Drain and stop everything that this driver started; what it did not start stays."""
        ...

    def kill(self) -> None:
        """End everything that it started at once, without a drain: for the second Ctrl-C."""
        ...
