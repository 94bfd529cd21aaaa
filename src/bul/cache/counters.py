"""What the engine counts about requests, in all and by class. Refuses to lock or to know time."""

from __future__ import annotations

from collections.abc import Mapping

from bul.cache.flights import RANKS, Flight

__all__ = ["RequestCounters"]


class RequestCounters:
    """Tokens asked for and cached; counted when a match ends."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._classes = {name: [0, 0, 0] for name in RANKS}
        self.ram_hit_tokens_total = 0

    def add(self, flight: Flight) -> None:
        """`flight` has ended."""
        counts = self._classes.get(flight.facts.priority) or self._classes["batch"]
        counts[0] += 1
        counts[1] += len(flight.keys) * self._block_tokens
        counts[2] += len(flight.entries) * self._block_tokens
        self.ram_hit_tokens_total += flight.ram_blocks * self._block_tokens

    def by_class(self) -> Mapping[str, Mapping[str, float]]:
        """Class of request -> counter -> value. Classes are few and fixed: safe as labels."""
        return {
            name: {
                "matches_total": matches,
                "asked_tokens_total": asked,
                "cached_tokens_total": cached,
            }
            for name, (matches, asked, cached) in self._classes.items()
        }

    def totals(self) -> Mapping[str, float]:
        """The sums over all classes."""
        sums = [sum(counts[i] for counts in self._classes.values()) for i in range(3)]
        names = ("matches_total", "asked_tokens_total", "cached_tokens_total")
        return dict(zip(names, sums, strict=True))
