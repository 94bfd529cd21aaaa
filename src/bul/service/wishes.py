"""What a request's own headers ask for, beside its body: x-bul-cache and x-bul-priority.

Refuses words that mean nothing, naming those that do.
"""

from __future__ import annotations

from bul.config import PRIORITIES
from bul.errors import InvalidRequest
from bul.service.asgi import Exchange

__all__ = ["priority", "wants_cache"]


def wants_cache(exchange: Exchange) -> bool:
    """`x-bul-cache: off` neither reads nor writes the cache: the control of a comparison."""
    given = exchange.header(b"x-bul-cache").lower()
    if given not in (b"", b"on", b"off"):
        raise InvalidRequest("x-bul-cache must be on or off", param="x-bul-cache")
    return given != b"off"


def priority(exchange: Exchange) -> str:
    """`x-bul-priority`: who goes first where there is a line."""
    given = exchange.header(b"x-bul-priority").lower().decode("latin-1")
    if given and given not in PRIORITIES:
        listed = ", ".join(PRIORITIES)
        raise InvalidRequest(f"x-bul-priority must be one of {listed}", param="x-bul-priority")
    return given or PRIORITIES[0]
