"""What the holders of keys used, summed by key, model and hour until it can be written. Pure.

Refuses to grow: beyond `ENTRIES_MAX` combinations the sums of further ones go into one entry an
hour whose key and model are `OTHERS`; nothing is dropped, only told apart no more.

Why sums and not rows: a database that is away for an hour leaves as many entries behind as there
are keys, however many requests were served.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["DEFAULT_REGION", "ENTRIES_MAX", "HOUR_S", "OTHERS", "Spent", "Sums", "UsageKey"]

HOUR_S = 3600
ENTRIES_MAX = 10_000
OTHERS = "(others)"
DEFAULT_REGION = "default"
"""Of whoever has no [regions] name."""

UsageKey = tuple[int, str, str]
"""(start of the hour in seconds since the epoch, key name, model); "" names no key."""


@dataclasses.dataclass(slots=True)
class Spent:
    """Of one key, model and hour. cached_tokens are among prompt_tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def add(self, other: Spent) -> None:
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens


class Sums:
    """Not thread-safe."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._sums: dict[UsageKey, Spent] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, at_s: float, name: str, model: str, spent: Spent) -> None:
        """at_s: seconds since the epoch."""
        hour_s = int(at_s) // HOUR_S * HOUR_S
        self._add((hour_s, name, model), spent)

    def _add(self, key: UsageKey, spent: Spent) -> None:
        if key not in self._sums and len(self._sums) >= self._entries_max:
            key = (key[0], OTHERS, OTHERS)
        self._sums.setdefault(key, Spent()).add(spent)

    def take(self) -> Mapping[UsageKey, Spent]:
        """Everything so far; begins anew."""
        taken, self._sums = self._sums, {}
        return taken
