"""What other ranks may ask of this one: a thread per connection, over the ring.

Refuses a caller that does not prove the secret, or that speaks of another model's blocks; hangs up
on anything that it does not understand, and on who is too slow.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from bul.blocks.format import RECORD_HEADER_BYTES
from bul.cache.tiers.distributed.arena import Arena
from bul.cache.tiers.distributed.link import Links, PairLink
from bul.cache.tiers.distributed.wire import (
    GREETING_BYTES_MAX,
    Challenge,
    Clear,
    Commit,
    Count,
    Delete,
    Done,
    Frames,
    Get,
    Has,
    Hello,
    Link,
    Linked,
    Offsets,
    Pull,
    Push,
    Request,
    Reserve,
    Sizes,
    Welcome,
    prove,
)

__all__ = ["RankServer"]

CONNECTIONS_MAX = 256
STOP_S = 1.0
RECORD_BYTES_MAX = 256 << 20
FAILURES = (OSError, RuntimeError, ValueError, IndexError)

logger = logging.getLogger(__name__)


class RankServer:
    """Listens until `close`. Raises OSError if it cannot. links: None on a single host."""

    def __init__(
        self,
        arena: Arena,
        *,
        identity: bytes,
        address: tuple[str, int],
        secret: str,
        timeout_s: float,
        links: Links | None,
    ) -> None:
        self._arena = arena
        self._identity = identity
        self._secret = secret
        self._timeout_s = timeout_s
        self._links = links
        self._listener = socket.create_server(address, backlog=64)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self.refused_total = 0
        self._thread = threading.Thread(target=self._accept, name="bul-rank", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Hang up on everybody."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(STOP_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                full = self._closed or len(self._connections) >= CONNECTIONS_MAX
                if not full:
                    self._connections.add(connection)
            if full:
                connection.close()
                continue
            serve = functools.partial(self._serve, connection)
            threading.Thread(target=serve, name="bul-rank-caller", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        caller = _Caller(self._arena, Frames(connection, self._timeout_s), self._links)
        try:
            self._greet(caller.frames)
            while caller.frames.wait_for_request(None):
                caller.answer()
        except FAILURES as error:
            logger.debug("a rank's connection ended: %s", error)
        finally:
            with self._lock:
                self._connections.discard(connection)
            caller.close()

    def _greet(self, frames: Frames) -> None:
        nonce = secrets.token_bytes(32)
        frames.send(Challenge(nonce))
        hello = frames.receive(Hello, bytes_max=GREETING_BYTES_MAX)
        proof = prove(self._secret, b"client", nonce, hello.nonce)
        if not hmac.compare_digest(hello.proof, proof) or hello.identity != self._identity:
            self.refused_total += 1
            raise ConnectionError("another secret, or another model")
        memory = self._arena.memory
        frames.send(
            Welcome(
                prove(self._secret, b"server", nonce, hello.nonce),
                os.getpid(),
                memory.fd,
                memory.size,
                self._arena.nonce,
            )
        )


class _Caller:
    """One connection's requests, in order."""

    def __init__(self, arena: Arena, frames: Frames, links: Links | None) -> None:
        self.frames = frames
        self._arena = arena
        self._links = links
        self._link: PairLink | None = None
        self._answers: dict[type, Callable[..., msgspec.Struct | None]] = {
            Has: lambda r: Sizes([int(there) for there in arena.has(r.keys)]),
            Get: lambda r: Offsets([place or (0, 0) for place in arena.look_up(r.keys)]),
            Reserve: self._reserve,
            Commit: self._commit,
            Delete: lambda r: Done(arena.remove(r.keys)),
            Clear: self._clear,
            Count: lambda _: Sizes([int(arena.stats()[name]) for name in ("blocks", "bytes")]),
            Link: self._make_link,
            Pull: self._pull,
            Push: self._push,
        }

    def answer(self) -> None:
        """Read one request, and answer it."""
        kinds: Any = Request  # a union is no type to mypy
        request = self.frames.receive(kinds)
        reply = self._answers[type(request)](request)
        if reply is not None:
            self.frames.send(reply)

    def close(self) -> None:
        self.frames.close()
        if self._link is not None:
            self._link.close()

    def _reserve(self, request: Reserve) -> Offsets:
        places = []
        there = self._arena.has(request.keys)
        for here, size in zip(there, request.sizes, strict=True):
            offset = None if here else self._arena.reserve(size)
            places.append((0, int(here)) if offset is None else (offset, size))
        return Offsets(places)

    def _commit(self, request: Commit) -> Done:
        pairs = zip(request.keys, request.offsets, strict=True)
        return Done(sum(self._arena.publish(key, offset) for key, offset in pairs))

    def _clear(self, _: Clear) -> Done:
        self._arena.clear()
        return Done(0)

    def _make_link(self, _: Link) -> None:
        if self._links is None:
            raise ConnectionError("this rank speaks to its own host alone")
        host, port, wait = self._links.offer()
        self.frames.send(Linked(host, port))
        self._link = wait()

    def _pull(self, request: Pull) -> None:
        assert self._link is not None, "first a Link"
        places = self._arena.look_up(request.keys)
        self.frames.send(Sizes([place[1] if place else 0 for place in places]))
        for place in places:
            # One at a time: the other end checks one while the next is copied here.
            if place is not None:
                self._link.send(self._arena.for_wire(*place), to=1)

    def _push(self, request: Push) -> Done:
        assert self._link is not None, "first a Link"
        there = self._arena.has(request.keys)
        wanted = [
            0 if here or not RECORD_HEADER_BYTES <= size <= RECORD_BYTES_MAX else size
            for here, size in zip(there, request.sizes, strict=True)
        ]
        self.frames.send(Sizes(wanted))
        stored = sum(there)
        for key, size in zip(request.keys, wanted, strict=True):
            if size:
                stored += self._arena.set_from_wire(key, self._link.receive(size, sender=1))
        return Done(stored)
