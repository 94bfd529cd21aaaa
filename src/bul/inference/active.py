"""One request inside the runner, and the room where requests without a slot wait.

Refuses to let a request without a slot cost much: `matched_max` of the waiting hold a match (and
with it blocks that cannot be evicted); the others wait unmatched, first in first out by priority
class. Only while a slot is idle and nobody is ready may more be matched: else a crowd that waits
for one request's blocks would keep everybody behind it from a free slot.

    queued --match--> settling --its blocks are loaded, nobody computes its next one--> ready
"""

from __future__ import annotations

import dataclasses
from typing import Final

from bul.blocks.prefix import PrefixMatch
from bul.inference.contract import GenerateRequest
from bul.inference.outbox import Outbox
from bul.inference.stops import TextStream

__all__ = ["ActiveRequest", "WaitingRoom"]

_RANKS: Final = {"interactive": 0, "batch": 1, "prefetch": 2}


@dataclasses.dataclass(eq=False, slots=True, kw_only=True)
class ActiveRequest:
    """A request from its arrival to its last delta; only the runner's thread touches it.

    tokens: prompt, then output. [0, position) of them is computed in `slot`; of the prompt,
    [0, cached_tokens) was loaded. `stored_blocks` of the prompt need no storing. The last
    `resumed_tokens` of the prompt are output of another replica. [0, posted) was in a delta.
    admitted_s, imported_s, first_token_s: when that was; 0.0 for not yet.
    """

    request: GenerateRequest
    outbox: Outbox
    arrival_s: float
    deadline_s: float
    max_tokens: int
    tokens: list[int]
    prompt_tokens: int
    text: TextStream
    resumed_tokens: int = 0
    posted: int = 0
    keys: list[bytes] = dataclasses.field(default_factory=list)
    match: PrefixMatch | None = None
    matched_s: float = 0.0
    slot: int | None = None
    position: int = 0
    cached_tokens: int = 0
    stored_blocks: int = 0
    prefill_s: float = 0.0
    admitted_s: float = 0.0
    imported_s: float = 0.0
    first_token_s: float = 0.0
    done: bool = False

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens + self.resumed_tokens

    @property
    def is_prefilling(self) -> bool:
        return self.position < self.prompt_tokens

    @property
    def rank(self) -> int:
        """Interactive goes before batch, batch before prefetch; unknown classes are batch."""
        return _RANKS.get(self.request.facts.priority, 1)


class _Line:
    """First in, first out by rank; any request can step out. O(1) each."""

    def __init__(self) -> None:
        self._by_rank: tuple[dict[ActiveRequest, None], ...] = tuple({} for _ in _RANKS)

    def __len__(self) -> int:
        return sum(map(len, self._by_rank))

    def add(self, active: ActiveRequest) -> None:
        self._by_rank[active.rank][active] = None

    def take(self) -> ActiveRequest | None:
        for line in self._by_rank:
            for active in line:
                del line[active]
                return active
        return None

    def discard(self, active: ActiveRequest) -> None:
        self._by_rank[active.rank].pop(active, None)


class WaitingRoom:
    """Requests without a slot. Pure bookkeeping: no clock, no cache."""

    def __init__(self, matched_max: int) -> None:
        self._matched_max = matched_max
        self._arrivals: dict[ActiveRequest, None] = {}
        self._queued = _Line()
        self._settling: dict[ActiveRequest, None] = {}
        self._ready = _Line()

    def can_match(self, *, slot_is_idle: bool) -> bool:
        """Whether somebody is queued and may be matched now."""
        if len(self._settling) + len(self._ready) < self._matched_max:
            return len(self._queued) > 0
        return slot_is_idle and len(self._queued) > 0 and not self.has_ready

    @property
    def has_ready(self) -> bool:
        return len(self._ready) > 0

    @property
    def oldest_arrival_s(self) -> float | None:
        return next((active.arrival_s for active in self._arrivals), None)

    def add(self, active: ActiveRequest) -> None:
        """A new request takes its place."""
        self._arrivals[active] = None
        self._queued.add(active)

    def take_queued(self, *, slot_is_idle: bool) -> ActiveRequest | None:
        """The next request to match, now settling; `None` when there is none or no room."""
        active = self._queued.take() if self.can_match(slot_is_idle=slot_is_idle) else None
        if active is not None:
            self._settling[active] = None
        return active

    def settle(self, active: ActiveRequest) -> None:
        """A settling request is ready for a slot; any other is left alone."""
        if active in self._settling:
            del self._settling[active]
            self._ready.add(active)

    def impatient(self, matched_before_s: float) -> list[ActiveRequest]:
        """Requests that have been settling since before then, the oldest first."""
        found = []
        for active in self._settling:  # in the order of matching
            if active.matched_s > matched_before_s:
                break
            found.append(active)
        return found

    def take_ready(self) -> ActiveRequest | None:
        """The next request for a slot; it leaves the room."""
        active = self._ready.take()
        if active is not None:
            del self._arrivals[active]
        return active

    def remove(self, active: ActiveRequest) -> None:
        """It was cancelled or timed out, wherever it waits."""
        self._arrivals.pop(active, None)
        self._settling.pop(active, None)
        self._queued.discard(active)
        self._ready.discard(active)
