r"""What a stream has already sent, as a router hands it to the replica that carries on with it.

    POST, with x-bul-resume: MAC         body: {"id", "created", "tokens", "finish_reason"} \n
                                               the client's own body, unchanged

Refuses what no router of the region has sealed: the MAC is over the path, the Authorization
header and the whole body, under the region's secret. Routers drop the header from what clients
send, so that a client has no way to put words into the model's mouth and have them counted as
the model's own. Where no API key is set a replica listens on loopback alone and anybody there
may already prompt it with any tokens: there the empty secret will do.
"""

from __future__ import annotations

import hmac
import typing

import msgspec

from bul.errors import InvalidRequest

__all__ = ["HEADER", "OFFER", "SENT_BYTES_MAX", "TOKENS_MAX", "Sent", "open_sealed", "seal"]

HEADER = b"x-bul-resume"
OFFER = b"offer"
"""As the header's value: the answer's events shall say their tokens, so that it can be resumed."""
TOKENS_MAX = 1 << 20
SENT_BYTES_MAX = 12 * TOKENS_MAX
Token = typing.Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_PURPOSE = b"bul resume 1\0"


class Sent(msgspec.Struct, frozen=True, omit_defaults=True):
    """id, created: of the stream's events, which go on under them; "" if none was sent yet.

    tokens: ids of the output, whose text was sent or may not be sent yet (a stop string, half a
    character). finish_reason: if that was sent; then only the counts are missing.
    """

    id: str = ""
    created: int = 0
    tokens: list[Token] = []
    finish_reason: str | None = None


_decoder = msgspec.json.Decoder(Sent)


def seal(
    secret: str, sent: Sent, *, target: bytes, authorization: bytes, body: bytes
) -> tuple[bytes, bytes]:
    """The header's value and the body of the request that carries on."""
    whole = b"%b\n%b" % (msgspec.json.encode(sent), body)
    return _mac(secret, target, authorization, whole), whole


def open_sealed(
    secret: str, mac: bytes, *, target: bytes, authorization: bytes, body: bytes
) -> tuple[Sent, bytes]:
    """What was sent, and the client's own body. Raises InvalidRequest (403) for a wrong seal."""
    if not hmac.compare_digest(mac, _mac(secret, target, authorization, body)):
        raise InvalidRequest(
            "x-bul-resume is for the region's routers", code="forbidden", status=403
        )
    head, _, rest = body.partition(b"\n")
    try:
        sent = _decoder.decode(head)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"x-bul-resume: {error}", code="invalid_value") from error
    if len(sent.tokens) > TOKENS_MAX or sent.finish_reason not in (None, "stop", "length"):
        raise InvalidRequest("x-bul-resume: out of range", code="invalid_value")
    return sent, rest


def _mac(secret: str, target: bytes, authorization: bytes, body: bytes) -> bytes:
    parts = (_PURPOSE, target, b"\0", authorization, b"\0", body)
    return hmac.digest(secret.encode(), b"".join(parts), "sha256").hex().encode()
