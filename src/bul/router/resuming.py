"""When a stream that has begun may go on at another replica, and the request that asks for that.

Refuses what would not go on as it began: answers that are drawn at random without a seed, several
choices, replicas that do not say their tokens (any server but ours). Such a stream ends with an
error event.
"""

from __future__ import annotations

import typing

import msgspec

from bul.inference.resume import HEADER, OFFER, Sent, seal
from bul.router.http1 import Request
from bul.router.stream_record import StreamRecord

__all__ = ["OFFER_LINE", "RESUMES_MAX", "Continuation"]

OFFER_LINE = b"%b: %b\r\n" % (HEADER, OFFER)
"""Added to a request whose answer we would have resumed."""
RESUMES_MAX = 4
"""Of one stream."""


class _Asked(msgspec.Struct):
    temperature: typing.Any = None
    seed: typing.Any = None
    n: typing.Any = None


_decoder = msgspec.json.Decoder(_Asked)


class Continuation:
    """What a stream has sent, how long it was silent at most, and how it would go on.

    sent: of a try that shall go on after it, and has not begun to.
    """

    __slots__ = ("_record", "_repeats", "_request", "_resumes", "_secret", "longest_gap_s", "sent")

    def __init__(self, request: Request, secret: str) -> None:
        self._request = request
        self._secret = secret
        self._record = StreamRecord()
        self._repeats: bool | None = None
        self._resumes = 0
        self.longest_gap_s = 0.0
        self.sent: Sent | None = None

    @property
    def done(self) -> bool:
        """Whether all events were sent; after `sent_so_far`."""
        return self._record.done

    def add(self, data: bytes) -> None:
        """Whole events, which now go to the client."""
        self._record.add(data)

    def sent_so_far(self) -> Sent | None:
        """What was sent, if another replica can take the stream up."""
        if self._repeats is None:
            self._repeats = _repeats(self._request)
        sent = self._record.sent()
        return sent if self._repeats and self._resumes < RESUMES_MAX and not self.done else None

    def request_to_go_on(self, authority: bytes) -> bytes:
        """For the replica at `authority`; `sent` is set."""
        request, sent = self._request, self.sent
        assert sent is not None
        self._resumes += 1
        mac, body = seal(
            self._secret,
            sent,
            target=request.target.partition(b"?")[0],
            authorization=request.authorization[0] if request.authorization else b"",
            body=request.body,
        )
        return request.serialise(authority, extra=b"%b: %b\r\n" % (HEADER, mac), body=body)


def _repeats(request: Request) -> bool:
    """Whether another replica would go on with the same tokens: one choice, greedy or seeded."""
    try:
        asked = _decoder.decode(request.body)
    except (msgspec.MsgspecError, UnicodeError):
        return False
    greedy = type(asked.temperature) in (int, float) and asked.temperature == 0
    return asked.n in (None, 1) and (greedy or type(asked.seed) is int)
