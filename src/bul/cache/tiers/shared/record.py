"""What lies under one name of the server: a record, or a general value with its version.

Refuses, with `None`, all that its header does not vouch for: the same 192 bytes and the same two
checksums as on disk (`blocks/format.py`), without padding.

    block   header (192) | payload
    value   "BULv" | version, 16 hex digits | header (192) | payload
    deleted "BULv" | version, 16 hex digits

Blocks are immutable, so who writes last does not matter. Values and their deletions do change: the
server keeps the newest version (`SET_VALUE`, `DELETE_VALUE`), whoever's write comes late. Hex,
because Lua compares text by the server's locale.
"""

from __future__ import annotations

from typing import Final

from bul.blocks.format import (
    BlockHeader,
    encode_record_header,
    payload_checksum,
    sound_payload,
)
from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord
from bul.cache.tiers.disk.codec import decode, encode

__all__ = [
    "DELETE_VALUE",
    "MARK_BYTES",
    "RECORD_BYTES_MAX",
    "SET_VALUE",
    "Damaged",
    "decode_record",
    "encode_record",
    "version_mark",
]

RECORD_BYTES_MAX: Final = 256 << 20
"""Half of what a server takes as one value by default."""

_PLACE: Final = int.from_bytes(b"BULshare", "little")
"""Seeds the header's checksum: a record copied out of a segment file does not parse here."""
_VALUE_MAGIC: Final = b"BULv"
MARK_BYTES: Final = len(_VALUE_MAGIC) + 16

SET_VALUE: Final = """
local old = redis.call('GETRANGE', KEYS[1], 0, 19)
if string.sub(old, 1, 4) == 'BULv' and old >= string.sub(ARGV[1], 1, 20) then return 0 end
if ARGV[2] == '0' then redis.call('SET', KEYS[1], ARGV[1])
else redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2]) end
return 1
"""
"""KEYS: name. ARGV: mark and record, expiry in ms of the epoch or 0. 1 if it was the newest."""

DELETE_VALUE: Final = """
local old = redis.call('GETRANGE', KEYS[1], 0, 19)
if string.sub(old, 1, 4) == 'BULv' and old >= ARGV[1] then return 0 end
local size = redis.call('STRLEN', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if size > 20 then return 1 end
return 0
"""
"""KEYS: name. ARGV: mark, the tombstone's life in ms. 1 if a value was there."""


class Damaged(Exception):
    """These bytes are not what their name says."""


def version_mark(version: int) -> bytes:
    """What stands before a value of that version; alone it is a tombstone."""
    return _VALUE_MAGIC + b"%016x" % (version & (1 << 64) - 1)


def encode_record(record: BlockRecord, key: bytes, identity: bytes, compression: str) -> bytes:
    """The bytes to keep for `record`; with its version in front if it has one."""
    payload = record.payload
    if isinstance(payload, memoryview):
        payload = payload.cast("B")
    encoding, stored = encode(payload, compression)
    header = BlockHeader(
        key=key,
        parent=record.parent if len(record.parent) == len(key) else b"",
        identity=identity,
        tokens=record.tokens,
        stored_bytes=len(stored),
        raw_bytes=len(payload),
        checksum=payload_checksum(stored),
        encoding=encoding,
        expires_wall_ms=int(record.expires_wall_s * 1000),
    )
    mark = version_mark(record.version) if record.version else b""
    return b"".join((mark, encode_record_header(header, _PLACE), stored))


def decode_record(data: bytes, key: bytes, identity: bytes, now_wall_s: float) -> Buffer | None:
    """The payload; `None` for what has expired. Raises Damaged.

    Of a tombstone what `value_tiers.py` reads as one: "v", 8 bytes of version, "d".
    """
    if data.startswith(_VALUE_MAGIC):
        if len(data) == MARK_BYTES:
            return _tombstone(data)
        data = data[MARK_BYTES:]
    found = sound_payload(data, _PLACE, key, identity)
    if found is None:
        raise Damaged
    payload, encoding, raw_bytes, expires_wall_ms = found
    if expires_wall_ms and now_wall_s * 1000 >= expires_wall_ms:
        return None
    raw = decode(encoding, payload, raw_bytes) if encoding else payload
    if raw is None:
        raise Damaged
    return raw


def _tombstone(mark: bytes) -> bytes:
    try:
        version = int(mark[len(_VALUE_MAGIC) :], 16)
    except ValueError:
        raise Damaged from None
    return b"v" + version.to_bytes(8, "big") + b"d"
