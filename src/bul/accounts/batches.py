"""Hands what came since the last time to a database, so that nothing counts twice.

Refuses to forget: a batch that failed is offered again before anything newer. When a commit's
answer is lost, the same batch comes again under the same number, and the database knows whether
it has it.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Batches"]

Batch = TypeVar("Batch")


class Batches(Generic[Batch]):
    """Of one process. take: what came since, None if nothing did; one thread at a time calls it."""

    def __init__(self, take: Callable[[], Batch | None]) -> None:
        self.failures = 0
        self._take = take
        self._writer = uuid.uuid4().hex
        self._writing = threading.Lock()
        self._pending: Batch | None = None
        self._number = 0

    def write(
        self,
        write: Callable[[str, int, Batch, float], bool],
        now_s: float,
        written: Callable[[Batch], None],
    ) -> None:
        """Offer what there is; `written` is told of each batch that is in. Whatever `write` raises
        goes through, and the batch stays to be offered again.
        """
        with self._writing:
            while (batch := self._next()) is not None:
                try:
                    write(self._writer, self._number, batch, now_s)
                except BaseException:
                    self.failures += 1
                    raise
                self._pending = None
                written(batch)

    def _next(self) -> Batch | None:
        if self._pending is None:
            self._pending = self._take()
            self._number += self._pending is not None
        return self._pending
