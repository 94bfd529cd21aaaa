"""What a stream has sent to its client, kept so that another replica can go on after it.

Refuses to cost much: pieces are kept as they came (an append a piece, no parsing) and read only
when a stream breaks off, or when KEEP_BYTES_MAX of them have gathered: then their tokens remain,
four bytes each, instead of some 250 bytes of JSON.
"""

from __future__ import annotations

import array

import msgspec

from bul.inference.resume import TOKENS_MAX, Sent

__all__ = ["EVENT_END", "LAST_CHUNK", "StreamRecord"]

KEEP_BYTES_MAX = 32 * 1024
EVENT_END = b"\n\n\r\n"
"""The end of an event that is the end of a chunk, as our own replicas frame them."""
LAST_CHUNK = b"0\r\n\r\n"
_DATA = b"data: "


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Extension(msgspec.Struct):
    tokens: list[int] = []


class _Event(msgspec.Struct):
    id: str
    created: int = 0
    choices: list[_Choice] = []
    bul: _Extension = msgspec.field(default_factory=_Extension)


_decoder = msgspec.json.Decoder(_Event)


class StreamRecord:
    """Of one stream. `done`: all events were sent, [DONE] included."""

    __slots__ = (
        "_bytes",
        "_created",
        "_finish_reason",
        "_id",
        "_pieces",
        "_tokens",
        "done",
        "lost",
    )

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._tokens = array.array("I")
        self._id = ""
        self._created = 0
        self._finish_reason: str | None = None
        self.done = False
        self.lost = False
        """Something was sent that cannot be told: nobody can go on."""

    def add(self, data: bytes) -> None:
        """Whole events, which now go to the client."""
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes > KEEP_BYTES_MAX:
            self._read()

    def sent(self) -> Sent | None:
        """All of it; None if that cannot be told."""
        self._read()
        if self.lost:
            return None
        return Sent(
            id=self._id,
            created=self._created,
            tokens=self._tokens.tolist(),
            finish_reason=self._finish_reason,
        )

    def _read(self) -> None:
        lines = b"".join(self._pieces).split(b"\n")
        self._pieces.clear()
        self._bytes = 0
        try:
            for line in lines:
                if line.startswith(_DATA):
                    self._read_event(line[len(_DATA) :])
        except (msgspec.MsgspecError, OverflowError):
            self.lost = True
        self.lost = self.lost or len(self._tokens) > TOKENS_MAX

    def _read_event(self, document: bytes) -> None:
        if document == b"[DONE]":
            self.done = True
            return
        event = _decoder.decode(document)  # an error event has no id
        self._id, self._created = event.id, event.created
        self._tokens.extend(event.bul.tokens)
        for choice in event.choices:
            self._finish_reason = choice.finish_reason or self._finish_reason
