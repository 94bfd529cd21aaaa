"""The keys that are valid now: those of bul.toml and those of the database, as one mapping.

Refuses to open up: once a database is named, an empty ring turns everybody away until the database
has said that it never had a key. Revoking the last key closes the door, it does not take it off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

__all__ = ["KeyRing"]


class KeyRing(Mapping[str, str]):
    """name -> SHA-256 in hex. A reader in another thread sees the old or the new keys, whole.

    fixed: those of bul.toml, which win over a database's key of the same name.
    """

    def __init__(self, fixed: Mapping[str, str], *, has_database: bool) -> None:
        self._fixed = dict(fixed)
        self._now: Mapping[str, str] = self._fixed
        self._asked = bool(fixed) or has_database

    def __bool__(self) -> bool:
        """Whether a key is asked for at all."""
        return self._asked

    def __getitem__(self, name: str) -> str:
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def update(self, valid: Mapping[str, str], *, ever: bool) -> None:
        """What the database says now. ever: whether it has or had any key."""
        self._now = {**valid, **self._fixed}
        self._asked = bool(self._fixed) or ever
