"""Where a conversation was last, also after its blocks have left that replica.

Refuses to be believed as a cache: nothing here says that blocks are there. It is worth knowing all
the same, because what judges evictions there (`adaptive`) learns from what comes back: a
conversation whose blocks left and that goes on elsewhere looks as if it had ended, and a beginner
at its new place. On moon_conv four replicas (`make bench-routing`) kept 0.92 of the cached-token
share of one with the summed cache, and keep 0.96 so. Of the 3.8 points that are left, some 1.5 are
what four policies do not know that learn from a quarter each.

And refuses to send long prompts home. Of many small conversations a replica's share of the room is
even by chance alone; of a few large ones it is not, and one whose blocks left shows a replica with
too many of them: there it is better off where there is room. So at least FITS_MIN prompts of its
size must fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

__all__ = ["FITS_MIN", "Homes"]

FITS_MIN = 16
"""Sending sessions home costs up to 3 points of cached-token share on weka_a (agents: 1 to 6 fit a
replica), and gains up to 1 on moon_synth (17 to 85 fit) and moon_conv (136)."""
Home = TypeVar("Home")

ENDS = 2
"""Chunks remembered of a prompt, from its end: the next turn may have changed the very last one."""
ENDS_MAX = 131_072


class Homes(Generic[Home]):
    """Ends of prompts -> who got them, the last ENDS_MAX of them."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends: dict[int, Home] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def find(self, hints: Sequence[int], matched: int) -> tuple[Home, int] | None:
        """Who had the longest beginning of `hints`, and how many; None if nobody had more than
        `matched` of them.
        """
        ends = self._ends
        if ends:
            for index in range(len(hints) - 1, matched - 1, -1):
                home = ends.get(hints[index])
                if home is not None:
                    return home, index + 1
        return None

    def add(self, hints: Sequence[int], home: Home) -> None:
        """A prompt was sent to `home`."""
        ends = self._ends
        for hint in hints[-ENDS:]:
            ends[hint] = home  # at its old place: a conversation that goes on has new ends
        while len(ends) > ENDS_MAX:
            del ends[next(iter(ends))]
