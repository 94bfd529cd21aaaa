"""Block events: how a replica tells its routers which texts' KV it keeps in RAM, as JSON lines.

Refuses to say what a text was: a text is its hint (`text_chain.py`), whose root is keyed. Both
sides of the wire use this module, since a service and a router never import each other.

    GET /cache/events/2?epoch=E&after=N    operator's key, if there are keys
    id: CRC-32 of the data, in hex
    data: {"epoch":E,"after":N,"seq":N+2,"ops":[[hint,cached tokens],[hint,0]]}    0: it is gone
    data: {"epoch":E,"after":S,"seq":S,"ops":[...],"snapshot":true,"more":true}    replaces all
    data: {"epoch":E,"after":S,"seq":S,"ops":[]}                                   a heartbeat

Each operation has a number. A line covers (after, seq]; whoever has seen another number than
`after` has missed something and asks again, without `after`, for a snapshot. An epoch is one
process's life: numbers of another one mean nothing.
"""

from __future__ import annotations

import collections
import itertools
import zlib
from collections.abc import Iterable, Mapping

import msgspec

__all__ = [
    "BEAT_S",
    "LINE_BYTES_MAX",
    "OPS_PER_LINE",
    "PATH",
    "EventLine",
    "OpsLog",
    "TextsHeld",
    "decode_line",
    "encode_line",
]

PATH = "/cache/events/2"
"""With the version of the hints: who makes other ones has no such page, and is routed to by what it
was sent."""
BEAT_S = 1.0
"""A replica is never silent for longer than this."""
OPS_PER_LINE = 2048
LINE_BYTES_MAX = OPS_PER_LINE * 40 + 1024
LOG_OPS_MAX = 65_536
"""What a follower may miss and still be told; after more it gets a snapshot."""

Op = tuple[int, int]
"""(hint, cached tokens up to it), 0 tokens for one that is gone."""


class EventLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """Operations (after, seq] of one epoch; with `snapshot`, all that is held as of `seq`."""

    epoch: str
    after: int
    seq: int
    ops: list[tuple[int, int]]
    snapshot: bool = False
    more: bool = False


_DECODER = msgspec.json.Decoder(EventLine)


def encode_line(line: EventLine) -> bytes:
    """As a server-sent event, whose id is the CRC-32 of its data."""
    data = msgspec.json.encode(line)
    return b"id: %08x\ndata: %b\n\n" % (zlib.crc32(data), data)


def decode_line(data: bytes) -> EventLine | None:
    """None for a blank event. Raises ValueError for a damaged one, and for what is none."""
    data = data.strip(b"\n")
    if not data:
        return None
    checksum, _, rest = data.partition(b"\n")
    body = rest.removeprefix(b"data: ")
    if checksum != b"id: %08x" % zlib.crc32(body):
        raise ValueError("the event does not match its checksum")
    return _DECODER.decode(body)


class OpsLog:
    """The last operations of one process, numbered from 1. No lock of its own."""

    def __init__(self, epoch: str, ops_max: int = LOG_OPS_MAX) -> None:
        self.epoch = epoch
        self.seq = 0
        self._ops: collections.deque[Op] = collections.deque(maxlen=ops_max)

    def add(self, hint: int, tokens: int) -> None:
        self.seq += 1
        self._ops.append((hint, tokens))

    def line_after(self, after: int) -> EventLine | None:
        """The next line for who has seen `after`, perhaps an empty one; None if that was too long
        ago, or never.
        """
        missing = self.seq - after
        if not 0 <= missing <= len(self._ops):
            return None
        newest_first = list(itertools.islice(reversed(self._ops), missing))
        ops = newest_first[::-1][:OPS_PER_LINE]
        return EventLine(self.epoch, after, after + len(ops), ops)

    def snapshot(self, held: Mapping[int, int]) -> list[EventLine]:
        """All of `held`, in lines of bounded length; at least one."""
        ops = list(held.items())
        pieces = [ops[at : at + OPS_PER_LINE] for at in range(0, len(ops), OPS_PER_LINE)] or [[]]
        last = len(pieces) - 1
        return [
            EventLine(self.epoch, self.seq, self.seq, piece, snapshot=True, more=index < last)
            for index, piece in enumerate(pieces)
        ]


class TextsHeld:
    """What one replica has told: `hints` are held once `synced`, at most `hints_max` of them.

    gaps: of numbers that did not follow. detect_gaps: False believes whatever comes, which is
    only there to show what numbers are for.
    """

    def __init__(self, hints_max: int, *, detect_gaps: bool = True) -> None:
        self.epoch = ""
        self.seq = 0
        self.hints: dict[int, int] = {}
        self.synced = False
        self.gaps = self.snapshots = self.ops_total = self.left_out = 0
        self._hints_max = hints_max
        self._detect_gaps = detect_gaps
        self._building: dict[int, int] | None = None

    def apply(self, line: EventLine) -> list[int] | None:
        """Believe one line. Returns the hints that are gone; None if something was missed: then
        nothing is believed until a snapshot comes, for which to ask anew.
        """
        if line.snapshot:
            self._take_snapshot(line)
            return []
        follows = (line.epoch, line.after) == (self.epoch, self.seq)
        whole = line.seq == line.after + len(line.ops)
        if self._detect_gaps and not (follows and whole and self.synced):
            self.gaps += 1
            self.forget()
            return None
        self.seq = line.seq
        return self._change(self.hints, line.ops)

    def forget(self) -> None:
        """Nothing is known any more; the next line must be a snapshot."""
        self.epoch, self.seq, self.synced, self._building = "", 0, False, None
        self.hints = {}

    def _take_snapshot(self, line: EventLine) -> None:
        if self._building is None or (line.epoch, line.seq) != (self.epoch, self.seq):
            self._building = {}
        self.epoch, self.seq, self.synced = line.epoch, line.seq, False
        self._change(self._building, line.ops)
        if not line.more:
            self.hints, self._building = self._building, None
            self.snapshots += 1
            self.synced = True

    def _change(self, held: dict[int, int], ops: Iterable[Op]) -> list[int]:
        gone: list[int] = []
        for hint, tokens in ops:
            self.ops_total += 1
            if not tokens:
                held.pop(hint, None)
                gone.append(hint)
            elif hint in held or len(held) < self._hints_max:
                held[hint] = tokens
            else:
                self.left_out += 1
        return gone
