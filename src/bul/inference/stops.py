"""From token bytes to text that may be sent: whole characters, and nothing of a stop string.

Refuses to depend on how the bytes were cut into tokens: the text is the same for any cut. The
stop string that ends first wins (of two that end together, the longer), as if characters came
one by one; it and all after it are dropped.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["TextStream"]


class TextStream:
    """Bytes in, text out. Holds back at most one character and a stop string less one character.

    Bytes that are not UTF-8 become U+FFFD; a character that is cut off by the end of the reply is
    dropped, since its other half will never come.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        """A stop string was completed; nothing more will come out."""

    def push(self, data: bytes) -> str:
        """Take the next token's bytes; return the text that can be sent now, perhaps ""."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data)
        if not self._stops:
            return text
        cut = self._first_stop(text)
        if cut is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        keep = self._open_suffix(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """No more bytes will come: what was held back for a stop string that never came."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string that ends first begins, or `None`."""
        ends = []
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                ends.append((start + len(stop), start))
        return min(ends)[1] if ends else None

    def _open_suffix(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stops)) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - size :]) for stop in self._stops):
                return size
        return 0
