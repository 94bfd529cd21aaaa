"""The usage ledger of one process: counts on the request path, writes beside it.

Refuses to wait and to forget silently: `record` adds to sums in memory; a database that is away
leaves them there, and what is still there at the end is said in numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from bul.accounts.batches import Batches
from bul.accounts.usage import ENTRIES_MAX, Spent, Sums, UsageKey

__all__ = ["Ledger", "Write"]

NAME_CHARS, MODEL_CHARS = 64, 256

Write = Callable[[str, int, Mapping[UsageKey, Spent], float], bool]
"""(writer, number, sums, now) -> False if that batch is there already; raises what it likes."""


class Ledger:
    """Thread-safe. entries_max: combinations of key, model and hour that are told apart."""

    def __init__(self, *, entries_max: int = ENTRIES_MAX) -> None:
        self._lock = threading.Lock()
        self._sums = Sums(entries_max)
        self._batches = Batches(self._taken)
        self._recorded = 0
        self._written = 0

    def record(self, at_s: float, name: str, model: str, spent: Spent) -> None:
        """Never waits for the database. at_s: seconds since the epoch."""
        with self._lock:
            self._recorded += spent.requests
            self._sums.add(at_s, name[:NAME_CHARS], model[:MODEL_CHARS], spent)

    def write(self, write: Write, now_s: float) -> int:
        """Offer what is there; returns the requests written. Whatever `write` raises goes through,
        and the batch stays to be offered again.
        """
        before = self._written
        self._batches.write(write, now_s, self._count)
        return self._written - before

    def stats(self) -> Mapping[str, float]:
        """Requests: recorded, written, and not yet written; and writes that failed."""
        with self._lock:
            return {
                "usage_recorded_total": self._recorded,
                "usage_written_total": self._written,
                "usage_unwritten": self._recorded - self._written,
                "usage_write_failures_total": self._batches.failures,
            }

    def _count(self, batch: Mapping[UsageKey, Spent]) -> None:
        with self._lock:
            self._written += sum(spent.requests for spent in batch.values())

    def _taken(self) -> Mapping[UsageKey, Spent] | None:
        with self._lock:
            return self._sums.take() if len(self._sums) else None
