"""General values in the slower tiers: as records of no tokens under the hash of their key.

It refuses to wait longer than a tier's deadline, to raise for a tier's fault, and to read anything
back but what `values.py` accepts: one byte of kind, then bytes, UTF-8, JSON, or NumPy's own .npy
format with pickling off. In front of that, 'v' and 8 bytes of version, where other hosts write too.

Tiers for several hosts are asked first: what they say of a value is the newest, and a tombstone
ends the search.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord
from bul.cache.lane import Lane
from bul.cache.values import StoredValue, decode, encode
from bul.cache.versions import VersionClock
from bul.clock import Clock
from bul.errors import TierUnavailable

__all__ = ["Deleted", "ValueTiers", "from_payload", "tier_key", "to_payload"]

VERSION, TOMBSTONE = b"v", b"d"
VERSION_BYTES = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Deleted:
    """Some host deleted the value, as of `version`."""

    version: int


Found = StoredValue | Deleted | None

KINDS = {b"b": "bytes", b"s": "str", b"j": "json", b"n": "array"}


def tier_key(key: str) -> bytes:
    """32 bytes; no block key is made this way (`person` differs)."""
    text = key.encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=32, person=b"bul-value").digest()


def to_payload(stored: StoredValue) -> bytes:
    """The value as bytes. Copies it."""
    if stored.kind == "array":
        buffer = io.BytesIO(b"n")
        buffer.seek(1)
        array = decode(stored)
        assert isinstance(array, np.ndarray)
        np.save(buffer, array, allow_pickle=False)
        return buffer.getvalue()
    if isinstance(stored.data, str):
        return b"s" + stored.data.encode("utf-8", "surrogatepass")
    return stored.kind[0].encode() + stored.data


def from_payload(payload: Buffer, expires_s: float) -> StoredValue | None:
    """The value, or `None` if these bytes are not one."""
    view = memoryview(payload).cast("B")
    kind, data = KINDS.get(bytes(view[:1])), bytes(view[1:])
    try:
        if kind == "bytes":
            return encode(data, expires_s=expires_s)
        if kind == "str":
            return encode(data.decode("utf-8", "surrogatepass"), expires_s=expires_s)
        if kind == "json":
            return encode(json.loads(data), expires_s=expires_s)
        if kind == "array":
            array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
            return encode(array, expires_s=expires_s)
    except (ValueError, TypeError, EOFError, OSError, RecursionError, MemoryError):
        pass
    return None


def _read_payload(payload: Buffer, expires_s: float) -> Found:
    """A value with or without version, or a tombstone."""
    view = memoryview(payload).cast("B")
    if view[:1] != VERSION or view.nbytes < 1 + VERSION_BYTES:
        return from_payload(view, expires_s)
    version = int.from_bytes(view[1 : 1 + VERSION_BYTES], "big")
    rest = view[1 + VERSION_BYTES :]
    if rest == TOMBSTONE:
        return Deleted(version)
    stored = from_payload(rest, expires_s)
    return stored and dataclasses.replace(stored, version=version)


class ValueTiers:
    """Reads values from the first lane that has them, writes them to all. Event loop only."""

    def __init__(self, lanes: Sequence[Lane], *, ttl_s: float, clock: Clock) -> None:
        self._lanes = lanes
        self._reading_order = sorted(lanes, key=lambda lane: not lane.keeps_versions)
        self._ttl_s = ttl_s
        self._clock = clock
        self._versions = VersionClock(clock)
        self.keeps_versions = any(lane.keeps_versions for lane in lanes)

    async def get(self, key: str, *, elsewhere: bool = False) -> Found:
        """The value as of the last write that has arrived, or `None`.

        elsewhere: ask only where other hosts write.
        """
        for lane in self._reading_order:
            if elsewhere and not lane.keeps_versions:
                break
            if not lane.available(self._clock.now_s()):
                continue
            answer: concurrent.futures.Future[Found] = concurrent.futures.Future()
            lane.read(functools.partial(self._read, lane, tier_key(key), answer))
            try:
                stored = await asyncio.wait_for(asyncio.wrap_future(answer), lane.deadline_s)
            except TimeoutError:
                continue
            if stored is not None:
                if stored.version:
                    self._versions.observe(stored.version)
                return stored
        return None

    def next_version(self) -> int:
        """For a write of now; 0 if no other host can write."""
        return self._versions.next() if self.keeps_versions else 0

    def set(self, key: str, stored: StoredValue) -> None:
        """Queue the value for every lane; a lane that has no room drops it, and its old value."""
        payload = to_payload(stored)
        if stored.version:
            payload = VERSION + stored.version.to_bytes(VERSION_BYTES, "big") + payload
        record = BlockRecord(
            key=tier_key(key),
            parent=b"",
            tokens=0,
            payload=payload,
            expires_wall_s=self._clock.wall_s() + self._ttl_s if self._ttl_s else 0.0,
            version=stored.version,
        )
        for lane in self._lanes:
            if not lane.write(record):
                # Better no value than the one before: a reader could not tell them apart.
                lane.remove((record.key,), stored.version)

    async def delete(self, key: str) -> bool:
        """Delete it everywhere, behind the writes under way; whether a tier had it."""
        return await self._remove((tier_key(key),), self.next_version()) > 0

    async def clear(self) -> None:
        """Delete all blocks and values of this identity everywhere."""
        await self._remove(None)

    async def _remove(self, keys: tuple[bytes, ...] | None, version: int = 0) -> int:
        removals = [(lane.deadline_s, lane.remove(keys, version)) for lane in self._lanes]
        removed = 0
        for deadline_s, done in removals:
            # Not `wait_for` on the future itself: it would cancel a removal that is only late.
            waiter = asyncio.shield(asyncio.wrap_future(done))
            try:
                removed += await asyncio.wait_for(waiter, deadline_s)
            except TimeoutError:
                continue
        return removed

    def _read(self, lane: Lane, key: bytes, answer: concurrent.futures.Future[Found]) -> None:
        stored: Found = None
        try:
            payload = lane.call("read", lambda: _single(lane.tier.get([key])))
        except TierUnavailable:
            payload = None
        if payload is not None:
            now_s = self._clock.now_s()
            stored = _read_payload(payload, now_s + self._ttl_s if self._ttl_s else 0.0)
        if answer.set_running_or_notify_cancel():
            answer.set_result(stored)


def _single(blocks: Sequence[Buffer | None]) -> Buffer | None:
    """The only block; ValueError (a failure of the tier) if there are more or it is none."""
    [block] = blocks
    if block is not None and not isinstance(block, bytes | bytearray | memoryview):
        raise ValueError(f"a block must be a buffer, was {type(block).__name__}")
    return block
