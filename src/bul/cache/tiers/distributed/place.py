"""Which rank keeps which block: rendezvous hashing (Thaler and Ravishankar, 1998). Pure.

Refuses to know who is alive: the caller leaves out whom it knows to be away. A rank that goes
moves its own keys alone, one that comes takes a fair share from each: 1/n of all in both cases.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import xxhash

__all__ = ["owner", "seeds"]


def seeds(ranks: Sequence[str]) -> list[int]:
    """One number per rank, from its address and not its position."""
    return [xxhash.xxh3_64_intdigest(rank.encode()) for rank in ranks]


def owner(key: bytes, rank_seeds: Sequence[int], away: Collection[int] = ()) -> int:
    """The rank with the highest hash of (key, rank) among those not `away`. ValueError if none."""
    present = [rank for rank in range(len(rank_seeds)) if rank not in away]
    return max(present, key=lambda rank: xxhash.xxh3_64_intdigest(key, rank_seeds[rank]))
