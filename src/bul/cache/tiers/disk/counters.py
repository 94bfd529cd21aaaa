"""Counters that several threads raise. Refuses names that were not given at birth."""

from __future__ import annotations

import threading

__all__ = ["COUNTER_NAMES", "Counters"]

COUNTER_NAMES = (
    "hits_total",
    "misses_total",
    "set_blocks_total",
    "repeated_blocks_total",
    "read_bytes_total",
    "written_bytes_total",
    "corrupted_total",
    "stale_total",
    "expired_total",
    "io_errors_total",
    "dropped_blocks_total",
    "deleted_blocks_total",
    "evicted_segments_total",
    "evicted_blocks_total",
    "reinserted_blocks_total",
    "rebuilt_blocks_total",
    "syncs_total",
)


class Counters:
    """A dict of totals behind a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(COUNTER_NAMES, 0)

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._totals[name] += count

    def add_reads(self, hits: int, misses: int, read_bytes: int) -> None:
        """The three counters of a `get`, with one lock."""
        with self._lock:
            self._totals["hits_total"] += hits
            self._totals["misses_total"] += misses
            self._totals["read_bytes_total"] += read_bytes

    def snapshot(self) -> dict[str, float]:
        with self._lock:
            return {name: float(total) for name, total in self._totals.items()}
