"""Who speaks: a MAC over each request and each answer, under a secret that all regions share.

Refuses before a body is read: a request without length or with too long a one, of a region that
is not in the static list, for somebody else, too old or too new, already seen, or under another
secret. The MAC covers the body's digest; the body is compared with it before it is parsed.

    request  HMAC-SHA256(secret, "bul-ask-1", method, path, from, to, time, nonce, length, digest)
    answer   HMAC-SHA256(secret, "bul-say-1", from, to, the request's nonce, status, digest)

Fields are length-prefixed. An answer is bound to its request by the nonce, so none can be replayed
or taken from another conversation. Blocks travel in the clear: between data centres, put TLS (an
https URL) under it.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Final

from bul.blocks.prefix import Buffer

__all__ = ["WINDOW_MS", "Admission", "Guard", "Refused", "Seal"]

WINDOW_MS: Final = 60_000
"""A request is taken this long before and after its time; clocks must agree as well as that."""
NONCES_MAX: Final = 200_000
NONCE_BYTES: Final = 16
PREFIX: Final = b"x-bul-"

Headers = Iterable[tuple[bytes, bytes]]


class Refused(Exception):
    """`status`: 401 for who is not to be believed, 411 and 413 for a length."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """A request whose head is in order. length, digest: what its body must have."""

    region: str
    nonce: bytes
    length: int
    digest: bytes


class Seal:
    """Signs and checks. secret: of all regions of the world."""

    def __init__(self, secret: str, region: str) -> None:
        self._secret = secret.encode()
        self.region = region

    def request(
        self, to: str, path: str, body: Buffer, now_ms: int, nonce: bytes = b""
    ) -> dict[str, str]:
        """Headers for a POST. nonce: a fresh one if left out."""
        nonce = nonce or secrets.token_bytes(NONCE_BYTES)
        digest = hashlib.sha256(body).digest()
        told = (self.region, to, str(now_ms), nonce.hex(), str(len(body)), digest.hex())
        return {
            "x-bul-from": self.region,
            "x-bul-to": to,
            "x-bul-time": str(now_ms),
            "x-bul-nonce": nonce.hex(),
            "x-bul-digest": digest.hex(),
            "x-bul-mac": self.mac("bul-ask-1", "POST", path, *told).hex(),
        }

    def answer(self, to: str, nonce: bytes, status: int, body: Buffer) -> bytes:
        """The MAC of an answer to `to`, as hex digits."""
        digest = hashlib.sha256(body).hexdigest()
        told = self.region, to, nonce.hex(), str(status), digest
        return self.mac("bul-say-1", *told).hex().encode()

    def is_answer(self, sender: str, nonce_hex: str, status: int, body: Buffer, mac: str) -> bool:
        """Whether `sender` answered just that to the request with this nonce."""
        digest = hashlib.sha256(body).hexdigest()
        told = sender, self.region, nonce_hex, str(status), digest
        return hmac.compare_digest(self.mac("bul-say-1", *told).hex(), mac)

    def mac(self, *fields: str) -> bytes:
        """Over length-prefixed fields: no two lists of fields are the same text."""
        parts = [field.encode() for field in fields]
        text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._secret, text, "sha256")


class Guard:
    """Lets requests in, each once. regions: who may ask."""

    def __init__(self, seal: Seal, regions: Iterable[str], *, body_bytes_max: int) -> None:
        self._seal = seal
        self._regions = frozenset(regions)
        self._body_bytes_max = body_bytes_max
        self._nonces: collections.OrderedDict[bytes, int] = collections.OrderedDict()
        self.refused_total = 0

    def admit(self, method: str, path: str, headers: Headers, now_ms: int) -> Admission:
        """Judge a request by its head alone. Raises Refused."""
        try:
            return self._admit(method, path, headers, now_ms)
        except Refused:
            self.refused_total += 1
            raise

    def check_body(self, admission: Admission, body: Buffer) -> None:
        """Whether this is the body that the head spoke of. Raises Refused."""
        digest = hashlib.sha256(body).digest()
        if len(body) != admission.length or not hmac.compare_digest(digest, admission.digest):
            self.refused_total += 1
            raise Refused(401, "the body is not the one that was signed")

    def _admit(self, method: str, path: str, headers: Headers, now_ms: int) -> Admission:
        told = _told(headers)
        length = self._length(told)
        sender, to, time = (told.get(name, "") for name in ("from", "to", "time"))
        nonce, digest = (_hex(told.get(name, ""), size) for name, size in _SIZES)
        listed = sender in self._regions and to == self._seal.region
        if method != "POST" or not listed or not nonce or not digest:
            raise Refused(401, "not signed by a region that is known here")
        fields = method, path, sender, to, time, nonce.hex(), str(length), digest.hex()
        expected = self._seal.mac("bul-ask-1", *fields).hex()
        if not hmac.compare_digest(expected, told.get("mac", "")):
            raise Refused(401, "signed with another secret")
        if not time.isdecimal() or abs(int(time) - now_ms) > WINDOW_MS:
            raise Refused(401, "signed too long ago, or clocks differ")
        self._remember(nonce, now_ms)
        return Admission(sender, nonce, length, digest)

    def _length(self, told: dict[str, str]) -> int:
        text = told.get("content-length", "")
        if not text.isdecimal() or len(text) > 12 or "transfer-encoding" in told:
            raise Refused(411, "a length is needed")
        if int(text) > self._body_bytes_max:
            raise Refused(413, "too long")
        return int(text)

    def _remember(self, nonce: bytes, now_ms: int) -> None:
        nonces = self._nonces
        while nonces and next(iter(nonces.values())) < now_ms - 2 * WINDOW_MS:
            nonces.popitem(last=False)
        if nonce in nonces:
            raise Refused(401, "seen before")
        if len(nonces) >= NONCES_MAX:
            raise Refused(401, "too many requests to tell whether it was seen before")
        nonces[nonce] = now_ms


_SIZES = (("nonce", NONCE_BYTES), ("digest", 32))


def _told(headers: Headers) -> dict[str, str]:
    """The headers that count, without "x-bul-". One that is there twice counts as absent."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for name, value in headers:
        if name.startswith(PREFIX) or name in (b"content-length", b"transfer-encoding"):
            key = name.removeprefix(PREFIX).decode("latin-1")
            twice |= {key} & found.keys()
            found[key] = value.decode("latin-1")
    return {key: value for key, value in found.items() if key not in twice}


def _hex(text: str, size: int) -> bytes:
    """`size` bytes from lower-case digits, or b""."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        return b""
    return found if len(found) == size and found.hex() == text else b""
