"""One line per event, for people or for machines (`--log-format json`).

Refuses to buffer: each line is flushed, because a supervisor waits for the `ready` one.
"""

from __future__ import annotations

import sys
import time
from typing import Literal, TextIO

import msgspec

__all__ = ["EventLog"]


class EventLog:
    """Writes events to `stream`; JSON lines are `{"event", "time_s", "text", **fields}`."""

    def __init__(
        self, log_format: Literal["text", "json"] = "text", stream: TextIO | None = None
    ) -> None:
        self._json = log_format == "json"
        self._stream = sys.stdout if stream is None else stream

    def emit(self, event: str, text: str, **fields: object) -> None:
        """`text` is the line for people; `event` and `fields` are the line for machines."""
        line = text
        if self._json:
            document = {"event": event, "time_s": round(time.time(), 3), "text": text, **fields}
            line = msgspec.json.encode(document).decode()
        self._stream.write(line + "\n")
        self._stream.flush()
