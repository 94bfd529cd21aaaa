"""The tier contract: a place where blocks lie. Small, synchronous, buffer-based, batched.

Callers that must never block (a decode loop, a vLLM scheduler) reach tiers through the engine's
I/O threads; a tier itself simply does the work and may take as long as its deadline. Every
implementation passes `bul.testing.tier_contract`.

A tier that is reached over a network may have two more methods: `probe()`, a cheap sign of life
that raises TierUnavailable, and `delete_values(keys, version)`, which leaves tombstones so that an
older `set` that comes late brings nothing back. One that outlives the process may have
`hottest(blocks_max)`: chains of keys, root first, the most recently used first, lazily and without
raising. The lane, the write queue and `ahead.py` use them where they are.

A tier verifies what it reads: identity, key, length and checksum; any mismatch is a miss, a counter
and a quarantine, never an exception and never bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from bul.blocks.prefix import Buffer

__all__ = ["BlockRecord", "CheckReport", "Tier"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BlockRecord:
    """One block on its way into a tier. `parent` is the key before it in the chain, or b""."""

    key: bytes
    parent: bytes
    tokens: int
    payload: Buffer
    expires_wall_s: float = 0.0
    """Seconds since the epoch, 0.0 for never."""
    version: int = 0
    """Of a general value: the newest one wins where several hosts write. 0 for a block."""
    tenant: str = ""
    """Whose it is, for a purge in every region; a tier may ignore it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """Index against files, both ways. Empty `problems` means they agree."""

    blocks: int
    bytes: int
    problems: tuple[str, ...] = ()


class Tier(Protocol):
    """Blocks by key. Every method may be called from several threads."""

    @property
    def name(self) -> str:
        """One of "ram", "disk", "shared", "distributed", "regions"."""
        ...

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading keys are (probably) here. A hint: cheap, may be wrong both ways."""
        ...

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        """Verified payloads, `None` for a miss, in the order of `keys`. Raises TierUnavailable."""
        ...

    def set(self, records: Sequence[BlockRecord]) -> int:
        """Store; returns how many are now here. Raises TierUnavailable. Repeats are cheap."""
        ...

    def delete(self, keys: Sequence[bytes]) -> int:
        """Remove; returns how many were here."""
        ...

    def clear(self) -> None:
        """Remove every block of this tier's identity namespace."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Counters and gauges, names with units last: bytes, blocks, hits, corrupted_total, ..."""
        ...

    def check(self, *, fix: bool = False) -> CheckReport:
        """Compare index and content both ways; with `fix`, make them agree."""
        ...

    def close(self) -> None: ...
