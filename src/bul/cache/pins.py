"""Pins: prefixes that stay in RAM until they are unpinned (a system prompt, a tool's schema).

It refuses to pin what is not resident, and more than PINNED_SHARE_MAX of the capacity: a cache of
pins would keep nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from bul.cache.resident import Entry, Resident

__all__ = ["PINNED_SHARE_MAX", "Pins"]

PINNED_SHARE_MAX = 0.5


class Pins:
    """Holds by the key of a pinned prefix's last block. No lock of its own."""

    def __init__(self, resident: Resident) -> None:
        self._resident = resident
        self._held: dict[bytes, tuple[Entry, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def blocks(self) -> int:
        """Blocks that cannot leave; a beginning that two pins share counts twice."""
        return sum(depth for _, depth in self._held.values())

    def pin(self, path: Sequence[bytes]) -> bool:
        """Keep all of `path`; False if it is not all resident, or too much is pinned already."""
        if not path or any(key not in self._resident.entries for key in path):
            return False
        if path[-1] in self._held:
            return True
        if self.blocks + len(path) > PINNED_SHARE_MAX * self._resident.capacity_blocks:
            return False
        self._held[path[-1]] = (self._resident.hold(path[-1]), len(path))
        return True

    def unpin(self, path: Sequence[bytes]) -> bool:
        """Undo `pin` of the very same path; whether it was pinned."""
        held = self._held.pop(path[-1], None) if path else None
        if held is None:
            return False
        self._resident.unhold(path[-1], held[0])
        return True

    def clear(self) -> None:
        """Unpin everything."""
        for key, (entry, _) in self._held.items():
            self._resident.unhold(key, entry)
        self._held.clear()
