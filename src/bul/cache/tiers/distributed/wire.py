"""What ranks say to each other: framed, typed messages over TCP, after both have proved a secret.

Refuses a frame that is too long before it reads it, anything but a greeting before the proof, and
a message of the wrong shape. No pickle: msgpack, checked against types while it is decoded.

    server  Challenge(nonce)
    client  Hello(nonce, identity, proof of "client")
    server  Welcome(proof of "server", where its memory lies)  -> then requests, one reply each
    proof = HMAC-SHA256(secret, role | server's nonce | client's nonce)
"""

from __future__ import annotations

import hmac
import socket
import struct
import time
from typing import Final, TypeVar

import msgspec

__all__ = [
    "FRAME_BYTES_MAX",
    "KEYS_MAX",
    "Challenge",
    "Clear",
    "Commit",
    "Count",
    "Delete",
    "Done",
    "Frames",
    "Get",
    "Has",
    "Hello",
    "Link",
    "Linked",
    "Offsets",
    "Pull",
    "Push",
    "Request",
    "Reserve",
    "Sizes",
    "Welcome",
    "prove",
]

FRAME_BYTES_MAX: Final = 4 << 20
GREETING_BYTES_MAX: Final = 1024
KEYS_MAX: Final = 16_384
_LENGTH: Final = struct.Struct("<I")

_T = TypeVar("_T")


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """First word of a rank that is called."""

    nonce: bytes


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Who calls, and for which model."""

    nonce: bytes
    identity: bytes
    proof: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """Where the memory of the called rank lies, for neighbours on its host."""

    proof: bytes
    pid: int
    fd: int
    size: int
    memory_nonce: bytes


class Has(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Sizes: 1 for each key that is there."""

    keys: list[bytes]


class Get(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Offsets, for a neighbour who reads the memory itself."""

    keys: list[bytes]


class Reserve(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Offsets, for a neighbour who writes into the memory itself. 0 for a key that is there."""

    keys: list[bytes]
    sizes: list[int]


class Commit(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Done: how many of the records were sound."""

    keys: list[bytes]
    offsets: list[int]


class Link(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Linked: a process group of two is made, over which payloads go."""


class Pull(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Sizes, then the records' bytes over the link."""

    keys: list[bytes]


class Push(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Sizes: of those that are wanted; then their bytes over the link, then -> Done."""

    keys: list[bytes]
    sizes: list[int]


class Delete(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Done: how many were there."""

    keys: list[bytes]


class Clear(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Done."""


class Count(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """-> Sizes: blocks and bytes that the rank keeps."""


Request = Has | Count | Get | Reserve | Commit | Link | Pull | Push | Delete | Clear


class Done(msgspec.Struct, frozen=True, array_like=True):
    """A count."""

    count: int


class Offsets(msgspec.Struct, frozen=True, array_like=True):
    """(offset, size) per key; (0, 0) for a miss, and for a key that is there already: (0, 1)."""

    places: list[tuple[int, int]]


class Sizes(msgspec.Struct, frozen=True, array_like=True):
    """Bytes per key; 0 for none."""

    sizes: list[int]


class Linked(msgspec.Struct, frozen=True, array_like=True):
    """Where the store of the process group listens."""

    host: str
    port: int


def prove(secret: str, role: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    """What only who knows the secret can say."""
    return hmac.digest(secret.encode(), b"/".join((role, server_nonce, client_nonce)), "sha256")


class Frames:
    """One connection: whole messages in and out, each within `timeout_s`. Raises OSError."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._socket = connection
        self._timeout_s = timeout_s
        connection.settimeout(timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: msgspec.Struct) -> None:
        """Raises ValueError for a message that is too long."""
        body = msgspec.msgpack.encode(message)
        if len(body) > FRAME_BYTES_MAX:
            raise ValueError(f"a message of {len(body)} bytes")
        self._socket.sendall(_LENGTH.pack(len(body)) + body)

    def receive(self, kind: type[_T], *, bytes_max: int = FRAME_BYTES_MAX) -> _T:
        """Raises OSError also for a message that is too long or of another shape."""
        end_s = time.monotonic() + self._timeout_s
        [size] = _LENGTH.unpack(self._exactly(_LENGTH.size, end_s))
        if size > bytes_max:
            raise ConnectionError(f"a message of {size} bytes")
        body = self._exactly(size, end_s)
        try:
            return msgspec.msgpack.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise ConnectionError(f"not what was expected: {error}") from error

    def wait_for_request(self, timeout_s: float | None) -> bool:
        """Until something comes; False after `timeout_s`."""
        self._socket.settimeout(timeout_s)
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(self._timeout_s)

    def _exactly(self, size: int, end_s: float) -> bytes:
        """The deadline is of the whole: who sends a byte now and then is late as well."""
        data = bytearray()
        while len(data) < size:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the other rank is too slow")
            self._socket.settimeout(left_s)
            piece = self._socket.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise ConnectionError("the other rank has hung up")
            data += piece
        self._socket.settimeout(self._timeout_s)
        return bytes(data)

    def close(self) -> None:
        self._socket.close()
