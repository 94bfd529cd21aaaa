"""What to load ahead of its request: conversations that are due to return, and what was hot before.

It refuses to load (`ahead.py` does), to lock and to read a clock, and to remember more than
SESSIONS_MAX conversations or KEYS_MAX of their keys.

A conversation is known by its paths: one that reaches the last TAIL_BLOCKS blocks of an earlier one
goes on with it. It is due when its last request lies back as long as its mean gap so far, or, while
it has none, the mean gap of all; overdue by OVERDUE_GAPS gaps, it is taken to be over. The next to
load is the one that is due soonest, the overdue ones first.
Worked number: gaps of 60 and 100 s, last seen at 1,000 s: due at 1,080 s, given up at 1,240 s.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Wishes"]

SESSIONS_MAX = 1024
KEYS_MAX = 131_072
TAIL_BLOCKS = 64
"""How far behind the end of a path the end of the turn before is looked for."""
OVERDUE_GAPS = 2.0
GAP_START_S = 60.0
GAP_KEPT = 0.95
"""Share of the mean gap of all that one more gap leaves."""


@dataclasses.dataclass(slots=True)
class _Session:
    path: Sequence[bytes]
    tenant: str
    last_s: float
    gap_s: float = 0.0
    gaps: int = 0
    given_up: bool = False


class Wishes:
    """A bounded table of conversations, and a list of chains that were hot before a restart."""

    def __init__(self) -> None:
        self._sessions: collections.OrderedDict[bytes, _Session] = collections.OrderedDict()
        self._keys = 0
        self._gap_s = GAP_START_S
        self._hot: Iterator[Sequence[bytes]] = iter(())

    def __len__(self) -> int:
        """Conversations that are remembered."""
        return len(self._sessions)

    def ended(self, path: Sequence[bytes], tenant: str, now_s: float) -> None:
        """A request over `path` ended."""
        if not path:
            return
        earlier = self._earlier(path)
        session = _Session(path, tenant, now_s)
        if earlier is not None:
            gap_s = now_s - earlier.last_s
            session.gaps = earlier.gaps + 1
            session.gap_s = (earlier.gap_s * earlier.gaps + gap_s) / session.gaps
            self._gap_s = self._gap_s * GAP_KEPT + gap_s * (1.0 - GAP_KEPT)
        self._sessions[path[-1]] = session
        self._keys += len(path)
        while len(self._sessions) > SESSIONS_MAX or self._keys > KEYS_MAX:
            _, old = self._sessions.popitem(last=False)
            self._keys -= len(old.path)

    def give_up(self, path: Sequence[bytes]) -> None:
        """No tier has all of `path`: it is not due until its next turn has ended."""
        session = self._sessions.get(path[-1])
        if session is not None:
            session.given_up = True

    def were_hot(self, chains: Iterable[Sequence[bytes]]) -> None:
        """Chains, root first, hottest first, that come after all conversations."""
        self._hot = iter(chains)

    def due(self, now_s: float) -> list[tuple[Sequence[bytes], str]]:
        """Paths and tenants of the conversations that may come back, the soonest first."""
        waits = []
        for number, session in enumerate(self._sessions.values()):
            if session.given_up:
                continue
            gap_s = session.gap_s or self._gap_s
            left_s = session.last_s + gap_s - now_s
            if left_s >= -OVERDUE_GAPS * gap_s:
                waits.append((left_s, number, session))
        return [(session.path, session.tenant) for _, _, session in sorted(waits)]

    def next_hot(self) -> Sequence[bytes] | None:
        """The next of the chains that were hot, `None` at their end. May read from a tier."""
        return next(self._hot, None)

    def _earlier(self, path: Sequence[bytes]) -> _Session | None:
        """The turn before, taken out of the table."""
        for key in reversed(path[-TAIL_BLOCKS:]):
            found = self._sessions.pop(key, None)
            if found is not None:
                self._keys -= len(found.path)
                return found
        return None
