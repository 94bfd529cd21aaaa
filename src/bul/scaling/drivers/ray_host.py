"""What a Ray actor runs on its node: one `bul serve` process, started, watched, drained.

Refuses to import Ray, and to let the process outlive the actor (see `leash.py`). BUL must be
installed on the node; nothing of its code is shipped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping

import msgspec

from bul.config import environment
from bul.scaling.drivers import leash
from bul.scaling.drivers.allocator import with_one_heap

__all__ = ["ReplicaHost"]

WORDS_KEPT = 5
WORDS_MAX = 300
LINE_MAX = 65536


class ReplicaHost:
    """command: argv of a replica that prints a ready line; environ: on top of the node's own."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        self._command = [sys.executable, *command]
        self._environ = with_one_heap(dict(environment()) | dict(environ))
        self._url = ""
        self._words: deque[str] = deque(maxlen=WORDS_KEPT)
        self._process: subprocess.Popen[bytes] | None = None
        self._exit_code: int | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._live, name="bul-replica", daemon=True).start()

    def info(self) -> dict[str, str]:
        """The URL once it is ready, and why it does not run any more."""
        failure = ""
        if self._ended.is_set():
            failure = f"exit code {self._exit_code}; its last words: {' '.join(self._words)}"
        return {"url": self._url, "failure": failure[:WORDS_MAX]}

    def stop(self, drain_s: float) -> None:
        """SIGTERM, and SIGKILL after drain_s; returns when it has ended."""
        self._signal(signal.SIGTERM)
        if not self._ended.wait(drain_s):
            self._signal(signal.SIGKILL)
            self._ended.wait()

    def _live(self) -> None:
        """In a thread of its own, which lives as long as the process: the leash is tied to it."""
        leashed = [sys.executable, "-I", "-S", str(leash.__file__), str(os.getpid())]
        try:
            with subprocess.Popen(  # noqa: S603 - our own command, from the driver
                [*leashed, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            ) as self._process:
                assert self._process.stdout is not None
                while line := self._process.stdout.readline(LINE_MAX):
                    self._look_at(line)
            self._exit_code = self._process.returncode
        except OSError as error:
            self._words.append(str(error))
        self._url = ""
        self._ended.set()

    def _look_at(self, line: bytes) -> None:
        try:
            document = msgspec.json.decode(line, type=dict[str, object])
        except msgspec.DecodeError:
            self._words.append(line.decode(errors="replace").strip())
            return
        if document.get("event") == "ready":
            self._url = str(document.get("url", "")).rstrip("/")

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(number)
