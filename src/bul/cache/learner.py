"""One background thread for what an eviction policy learns, so that no request waits for it.

It refuses to queue (while one lesson waits, a further one is the same lesson: it looks at all that
is there when it runs), and to compete with requests: after a lesson it rests REST_SHARE times as
long as that computed. A lesson that raises is logged, and the policy goes on with what it knew.

Between lessons it looks at a flag instead of waiting to be woken, because a thread that wakes up
asks for the interpreter in the middle of the very request that woke it. Quiet for IDLE_S, it sleeps
until it is woken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Learner"]

PAUSE_S = 0.02
REST_SHARE = 4.0
IDLE_S = 1.0

logger = logging.getLogger(__name__)


class Learner:
    """Runs one lesson after the other; the thread starts with the first one."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self.lessons_total = 0
        self.failed_total = 0
        self._lesson: Callable[[], None] | None = None
        self._asleep = False
        self._closed = threading.Event()
        self._woken = threading.Event()
        self._gate = threading.Lock()  # no thread may start after `close`
        self._thread: threading.Thread | None = None

    def submit(self, lesson: Callable[[], None]) -> None:
        """Run `lesson` soon, if none waits. Never waits itself; any thread."""
        if self._lesson is None:
            self._lesson = lesson
            if self._asleep or self._thread is None:
                self._wake()

    def close(self) -> None:
        """Finish the lesson under way and end the thread. Idempotent."""
        with self._gate:
            self._closed.set()
            thread, self._thread = self._thread, None
        self._woken.set()
        if thread is not None:
            thread.join()

    def _wake(self) -> None:
        with self._gate:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(
                    target=self._run, name="bul-cache-learner", daemon=True
                )
                self._thread.start()
        self._woken.set()

    def _run(self) -> None:
        rest_s = PAUSE_S
        quiet_s = 0.0
        while not self._closed.wait(rest_s):
            quiet_s = 0.0 if self._lesson is not None else quiet_s + rest_s
            if quiet_s >= self._idle_s:
                self._sleep()
                quiet_s = 0.0
            rest_s = max(PAUSE_S, REST_SHARE * self._teach())

    def _sleep(self) -> None:
        self._woken.clear()
        self._asleep = True
        if self._lesson is None:  # else it came before it could see that nobody looks
            self._woken.wait()
        self._asleep = False

    def _teach(self) -> float:
        """Run the lesson that waits, if any; the seconds that it computed."""
        lesson, self._lesson = self._lesson, None
        if lesson is None:
            return 0.0
        started_s = time.thread_time()
        try:
            lesson()
            self.lessons_total += 1
        except Exception:
            self.failed_total += 1
            logger.exception("an eviction policy's lesson raised")
        return time.thread_time() - started_s
