"""One connection to another rank: same-host memory if it can be opened, else a link.

Refuses to be used by two threads at a time, and after any failure: its owner then makes another.
Everything that is read is verified here: header, key, identity, checksum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from bul.blocks.format import RECORD_HEADER_BYTES
from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord
from bul.cache.tiers.distributed.arena import WIRE_PLACE, Memory, encode, read_record
from bul.cache.tiers.distributed.link import Links, PairLink
from bul.cache.tiers.distributed.wire import (
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
    Reserve,
    Sizes,
    Welcome,
    prove,
)

__all__ = ["Channel", "ChannelPlan"]

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChannelPlan:
    """How ranks are reached. links: None if all are on this host. use_memory: where it can be."""

    identity: bytes
    secret: str
    timeout_s: float
    links: Links | None
    use_memory: bool = True


class Channel:
    """Connects at birth. Raises OSError, RuntimeError or ValueError, as every method does."""

    def __init__(self, plan: ChannelPlan, address: tuple[str, int]) -> None:
        self._plan = plan
        self._memory: Memory | None = None
        self._link: PairLink | None = None
        connection = socket.create_connection(address, plan.timeout_s)
        self._frames = Frames(connection, plan.timeout_s)
        try:
            self._greet()
            if self._memory is None:
                self._make_link()
        except BaseException:
            self.close()
            raise

    @property
    def way(self) -> str:
        """Either "memory" or "link"."""
        return "memory" if self._memory is not None else "link"

    def has(self, keys: Sequence[bytes]) -> list[bool]:
        self._frames.send(Has(list(keys)))
        return [bool(there) for there in _as_many(self._frames.receive(Sizes).sizes, keys)]

    def get(self, keys: Sequence[bytes], now_wall_s: float) -> list[tuple[Buffer | None, bool]]:
        """(payload, whether a record came) per key; without payload it was torn or damaged."""
        records: Iterable[tuple[bytes | bytearray | None, int]]
        records = self._copy(keys) if self._memory is not None else self._pull(keys)
        identity = self._plan.identity
        return [
            (read_record(data, place, key, identity, now_wall_s), True) if data else (None, False)
            for key, (data, place) in zip(keys, records, strict=True)
        ]

    def set(self, records: Sequence[BlockRecord], keys: Sequence[bytes]) -> int:
        """How many are there now."""
        return (self._write if self._memory is not None else self._push)(records, keys)

    def delete(self, keys: Sequence[bytes]) -> int:
        self._frames.send(Delete(list(keys)))
        return self._frames.receive(Done).count

    def clear(self) -> None:
        self._frames.send(Clear())
        self._frames.receive(Done)

    def count(self) -> tuple[int, int]:
        """Blocks and bytes that the rank keeps."""
        self._frames.send(Count())
        blocks, size = _as_many(self._frames.receive(Sizes).sizes, (0, 0))
        return blocks, size

    def close(self) -> None:
        self._frames.close()
        if self._link is not None:
            self._link.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _greet(self) -> None:
        plan, nonce = self._plan, secrets.token_bytes(32)
        challenge = self._frames.receive(Challenge)
        proof = prove(plan.secret, b"client", challenge.nonce, nonce)
        self._frames.send(Hello(nonce, plan.identity, proof))
        welcome = self._frames.receive(Welcome)
        expected = prove(plan.secret, b"server", challenge.nonce, nonce)
        if not hmac.compare_digest(welcome.proof, expected):
            raise ConnectionError("the other rank does not know the secret")
        if plan.use_memory:
            with contextlib.suppress(OSError, ValueError):  # on another host, or not ours to open
                self._memory = Memory.of_neighbour(
                    welcome.pid, welcome.fd, welcome.size, welcome.memory_nonce
                )

    def _make_link(self) -> None:
        if self._plan.links is None:
            raise ConnectionError("the other rank's memory cannot be opened, and there is no link")
        self._frames.send(Link())
        linked = self._frames.receive(Linked)
        self._link = self._plan.links.call(linked.host, linked.port)

    # over memory

    def _copy(self, keys: Sequence[bytes]) -> list[tuple[bytes | None, int]]:
        assert self._memory is not None
        self._frames.send(Get(list(keys)))
        places = _as_many(self._frames.receive(Offsets).places, keys)
        seed = self._memory.seed
        return [
            (self._memory.copy(offset, size) if size else None, seed + offset)
            for offset, size in places
        ]

    def _write(self, records: Sequence[BlockRecord], keys: Sequence[bytes]) -> int:
        memory = self._memory
        assert memory is not None
        sizes = [RECORD_HEADER_BYTES + memoryview(record.payload).nbytes for record in records]
        self._frames.send(Reserve(list(keys), sizes))
        places = _as_many(self._frames.receive(Offsets).places, keys)
        there = sum(1 for offset, flag in places if not offset and flag)
        written: list[tuple[bytes, int]] = []
        for record, key, size, (offset, _) in zip(records, keys, sizes, places, strict=True):
            if not offset:
                continue
            if not 0 < offset <= offset + size <= memory.size:
                raise ValueError("a place outside the other rank's memory")
            parts = encode(record, key, self._plan.identity, memory.seed + offset)
            memory.write(offset, parts)
            written.append((key, offset))
        if not written:
            return there
        self._frames.send(Commit([key for key, _ in written], [offset for _, offset in written]))
        return there + self._frames.receive(Done).count

    # over a link

    def _pull(self, keys: Sequence[bytes]) -> Iterator[tuple[bytearray | None, int]]:
        """One transfer a record: each arrives in the buffer that its payload is served from."""
        assert self._link is not None
        self._frames.send(Pull(list(keys)))
        for size in _as_many(self._frames.receive(Sizes).sizes, keys):
            yield (self._link.receive(size, sender=0) if size else None), WIRE_PLACE

    def _push(self, records: Sequence[BlockRecord], keys: Sequence[bytes]) -> int:
        assert self._link is not None
        sizes = [RECORD_HEADER_BYTES + memoryview(record.payload).nbytes for record in records]
        self._frames.send(Push(list(keys), sizes))
        wanted = _as_many(self._frames.receive(Sizes).sizes, keys)
        for record, key, size in zip(records, keys, wanted, strict=True):
            if size:
                sealed = encode(record, key, self._plan.identity, WIRE_PLACE)
                self._link.send(bytearray().join(sealed), to=0)
        return self._frames.receive(Done).count


def _as_many(found: Sequence[_T], wanted: Sequence[object]) -> Sequence[_T]:
    """`found`, if it is one for each that was asked for. Raises ValueError."""
    if len(found) != len(wanted):
        raise ValueError(f"asked for {len(wanted)}, got {len(found)}")
    return found
