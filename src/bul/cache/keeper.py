"""The keeper: which blocks go where. New ones into RAM and, written through, to every slower tier.

It refuses to wait: a slower tier takes a block into its queue or drops it, counted. A block that
could not be queued is offered once more when RAM evicts it (demotion); one that was loaded from
tier i is offered to the faster tiers (promotion) and taken to be in the slower ones.

Why write through, and not only when RAM evicts: a replica that is killed has then lost a queue, not
its RAM, and the next one on the host starts warm. Runs under the engine's lock; only queues.
"""

from __future__ import annotations

from collections.abc import Sequence

from bul.blocks.prefix import Buffer, RequestFacts
from bul.cache.contract import BlockRecord
from bul.cache.lane import Lane
from bul.cache.resident import Entry, Resident
from bul.clock import Clock

__all__ = ["Keeper"]


class Keeper:
    """`ttl_s` 0.0 is for ever. A loaded block's time starts again: at most 2 x `ttl_s` in all."""

    def __init__(
        self,
        resident: Resident,
        lanes: Sequence[Lane],
        *,
        ttl_s: float,
        block_tokens: int,
        clock: Clock,
    ) -> None:
        self._resident = resident
        self._lanes = lanes
        self._ttl_s = ttl_s
        self._block_tokens = block_tokens
        self._clock = clock
        if lanes:
            resident.evicted = []

    def keep(
        self,
        path: Sequence[bytes],
        blocks: Sequence[Buffer],
        facts: RequestFacts,
        *,
        touched: int,
        now_s: float,
        source: int | None = None,
        speculative: bool = False,
    ) -> list[Entry]:
        """Keep `blocks` as the end of `path`; `source` is the lane they were loaded from.

        speculative: nobody asked for them, so they come in only where there is room.
        """
        first = len(path) - len(blocks)
        expires_s = now_s + self._ttl_s if self._ttl_s else 0.0
        # What lies in a lane already: the source and all that are slower.
        queued = 0 if source is None else -1 << source
        parents = (path[first - 1] if first else b"", *path[first:])
        new = [
            Entry(block, parent, expires_s, facts.tenant, queued, now_s)
            for block, parent in zip(blocks, parents, strict=False)
        ]
        if self._lanes:
            for key, entry in zip(path[first:], new, strict=True):
                if key not in self._resident.entries:
                    self._offer(key, entry, now_s)
        if speculative:
            for entry in new:
                entry.ahead = 1 + (source or 0)
            self._resident.admit_where_room(path, new, facts, now_s=now_s)
        else:
            self._resident.admit(path, new, facts, touched=touched, now_s=now_s)
        self.demote(now_s)
        return new

    def demote(self, now_s: float) -> None:
        """Offer what RAM evicted to the tiers that did not get it before."""
        if self._resident.evicted:
            evicted, self._resident.evicted = self._resident.evicted, []
            for key, entry in evicted:
                self._offer(key, entry, now_s)

    def _offer(self, key: bytes, entry: Entry, now_s: float) -> None:
        """Queue the block in each lane that lacks it, unless its time is over."""
        left_s = entry.expires_s - now_s if entry.expires_s else 0.0
        if left_s < 0:
            return
        record: BlockRecord | None = None
        for index, lane in enumerate(self._lanes):
            if entry.queued >> index & 1:
                continue
            record = record or BlockRecord(
                key=key,
                parent=entry.parent,
                tokens=self._block_tokens,
                payload=entry.payload,
                expires_wall_s=self._clock.wall_s() + left_s if entry.expires_s else 0.0,
                tenant=entry.tenant,
            )
            if lane.write(record):
                entry.queued |= 1 << index
