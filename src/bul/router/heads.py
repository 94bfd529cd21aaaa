"""Heads that were read before: everybody sends the same one again and again, but for its length.

Refuses to read anything by itself. A head that llhttp and our rules took is remembered without
the digits of its Content-Length; the same bytes around other digits mean the same, since the
grammar of that field is digits alone. A message that is not whole in one piece, or has anything
beyond itself behind it, goes the long way. Clients' requests and replicas' answers are both read
like this.
"""

from __future__ import annotations

import typing

from bul.router.http1 import BODY_BYTES_MAX, Request

__all__ = ["ANSWERS_MAX", "HEADS_MAX", "KnownAnswers", "KnownHeads"]

HEADS_MAX = 1024
ANSWERS_MAX = 64
"""Of one replica: they differ by the second (Date), not by the client."""
HEAD_BYTES_MAX = 4096
NO_KEY = (b"", b"")
"""Of no head: each begins with something."""

Known = typing.TypeVar("Known")


class _Memory(typing.Generic[Known]):
    """Keys are a head's bytes before and after its length's digits."""

    def __init__(self, heads_max: int) -> None:
        self._heads_max = heads_max
        self._known: dict[tuple[bytes, bytes], Known] = {}

    def find(self, data: bytes) -> tuple[Known, bytes] | None:
        """What was remembered for the head of the one whole message that `data` is, and its body;
        None if it is something else, or the head is not known.
        """
        key, body = _cut(data)
        known = self._known.get(key)
        return None if known is None else (known, body)

    def remember(self, data: bytes, known: Known) -> None:
        """`data` was read the long way: it has one length and no Transfer-Encoding."""
        key, _ = _cut(data)
        if key == NO_KEY:
            return
        if len(self._known) >= self._heads_max:
            self._known.clear()
        self._known[key] = known


class KnownHeads(_Memory[Request]):
    """Of a router's clients."""

    def __init__(self) -> None:
        super().__init__(HEADS_MAX)

    def request(self, data: bytes) -> Request | None:
        """The one whole request that `data` is, if its head is known."""
        found = self.find(data)
        return None if found is None else found[0].again(found[1])

    def learn(self, data: bytes, request: Request) -> None:
        """`data`, which began with a head, was read the long way and was this very request."""
        if request.is_plain:
            self.remember(data, request.again(b""))


class KnownAnswers(_Memory[tuple[bytes, bytes]]):
    """Of one replica: for a 200 that keeps the connection, the head for the client, as it is
    before and after the length's digits, without the blank line at its end.
    """

    def __init__(self) -> None:
        super().__init__(ANSWERS_MAX)


def _cut(data: bytes) -> tuple[tuple[bytes, bytes], bytes]:
    """The key of the head of one whole message, and its body; NO_KEY if it is none."""
    head, _, body = data.partition(b"\r\n\r\n")
    before, name, rest = head.partition(b"\r\nContent-Length: ")
    if not name:
        before, _, rest = head.partition(b"\r\ncontent-length: ")
    digits, _, after = rest.partition(b"\r\n")
    if digits != b"%d" % len(body) or len(head) > HEAD_BYTES_MAX or len(body) > BODY_BYTES_MAX:
        return NO_KEY, b""
    return (before, after), body
