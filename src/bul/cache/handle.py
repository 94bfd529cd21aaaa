"""The handle that a caller of `match_prefix` holds; see `PrefixMatch` in `blocks/prefix.py`.

It refuses to be forgotten silently: dropped without `release`, it leaves a note that the engine
counts, logs with its age, and frees the holds of.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Protocol

from bul.blocks.prefix import Buffer
from bul.cache.flights import Flight

__all__ = ["EngineMatch", "MatchOwner"]


class MatchOwner(Protocol):
    """What a handle needs of its engine."""

    leaked: collections.deque[Flight]

    def when_settled(self, flight: Flight, callback: Callable[[], None]) -> None: ...

    def release(self, flight: Flight) -> None: ...


class EngineMatch:
    """One match of one caller."""

    __slots__ = ("_flight", "_owner", "_released")

    def __init__(self, owner: MatchOwner, flight: Flight) -> None:
        self._owner = owner
        self._flight = flight
        self._released = False

    @property
    def blocks(self) -> Sequence[Buffer]:
        """Payloads of [0, cached), root first; final once `settled`. No copies."""
        return [entry.payload for entry in self._flight.entries]

    @property
    def settled(self) -> bool:
        """No load is under way and nobody else computes the next missing block."""
        return self._flight.settled

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Call `callback` exactly once; now, if settled, else from the thread that settles it."""
        self._owner.when_settled(self._flight, callback)

    def release(self) -> None:
        """Drop holds and unfulfilled claims. Idempotent; any thread."""
        if not self._released:
            self._released = True
            self._owner.release(self._flight)

    def __del__(self) -> None:
        if not self._released:
            # May run inside any allocation, even under the engine's lock: only leave a note.
            self._owner.leaked.append(self._flight)
