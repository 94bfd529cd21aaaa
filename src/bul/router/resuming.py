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

__all__ = ["OFFER_LINE", "RESUMES_MAX", "repeats", "request_to_go_on"]

OFFER_LINE = b"%b: %b\r\n" % (HEADER, OFFER)
"""Added to a request whose answer we would have resumed."""
RESUMES_MAX = 4
"""Of one stream."""


class _Asked(msgspec.Struct):
    temperature: typing.Any = None
    seed: typing.Any = None
    n: typing.Any = None


_decoder = msgspec.json.Decoder(_Asked)


def repeats(request: Request) -> bool:
    """Whether another replica would go on with the same tokens: one choice, greedy or seeded."""
    try:
        asked = _decoder.decode(request.body)
    except (msgspec.MsgspecError, UnicodeError):
        return False
    greedy = type(asked.temperature) in (int, float) and asked.temperature == 0
    return asked.n in (None, 1) and (greedy or type(asked.seed) is int)


def request_to_go_on(request: Request, sent: Sent, secret: str, authority: bytes) -> bytes:
    """The request for the replica at `authority` that shall go on after `sent`."""
    authorization = request.authorization[0] if request.authorization else b""
    target = request.target.partition(b"?")[0]
    mac, body = seal(secret, sent, target=target, authorization=authorization, body=request.body)
    return request.serialise(authority, extra=b"%b: %b\r\n" % (HEADER, mac), body=body)
