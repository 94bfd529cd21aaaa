"""One background thread for what an eviction policy learns, so that no request waits for it.

Refuses to queue: while a lesson is under way and one more waits, further ones are dropped and
counted. A lesson that raises is logged, and the policy goes on with what it knew.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

__all__ = ["Learner"]

logger = logging.getLogger(__name__)


class Learner:
    """Runs lessons one after the other; the thread starts with the first one."""

    def __init__(self) -> None:
        self.dropped_total = 0
        self.failed_total = 0
        self._closed = False
        self._gate = threading.Lock()  # no thread may start after `close`
        self._lessons: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._thread: threading.Thread | None = None

    def submit(self, lesson: Callable[[], None]) -> None:
        """Run `lesson` soon, or drop it. Never waits for a lesson; any thread."""
        with self._gate:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="bul-cache-learner", daemon=True
                )
                self._thread.start()
            try:
                self._lessons.put_nowait(lesson)
            except queue.Full:
                self.dropped_total += 1

    def close(self) -> None:
        """Finish the lesson under way and end the thread. Idempotent."""
        with self._gate:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._lessons.put(None)
            thread.join()

    def _run(self) -> None:
        while (lesson := self._lessons.get()) is not None:
            try:
                lesson()
            except Exception:
                self.failed_total += 1
                logger.exception("an eviction policy's lesson raised")
