"""The driver contract: the only way in which replicas come and go."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

__all__ = ["Driver", "Replica", "ReplicaState"]

ReplicaState = Literal["pending", "ready", "draining", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One service process as the driver sees it. `url` is without a trailing slash."""

    name: str
    url: str
    state: ReplicaState


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

    async def close(self) -> None:
        """Stop everything that this driver started."""
        ...
