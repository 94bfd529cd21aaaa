"""A decision and its reason: what `decide` returns, what the loop acts on and history shows."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["Decision", "Direction"]


class Direction(StrEnum):
    """Which way the number of replicas is wanted to go."""

    UP = "up"
    DOWN = "down"
    HOLD = "hold"


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`replicas` wanted, and why. `alert` asks for a person: more replicas would not help."""

    direction: Direction
    replicas: int
    reason: str
    alert: str = ""
