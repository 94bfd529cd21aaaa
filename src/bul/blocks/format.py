"""The bytes of a stored block: record header, segment header, table of contents, footer.

Refuses to trust anything it reads: every parser takes any bytes and answers with a checked value
or `None`, and nothing else. docs/reference/format.md is the same in words and pictures.

A record is `header (192 bytes) | payload | padding to 64`. Two checksums (xxh3-128) guard it: one
of the payload, inside the header, and one of the header, which is *placed*: seeded with the
segment's random seed plus the record's offset. So a record that lies where it was not written (a
misdirected write, a swapped file, record bytes smuggled in as somebody's payload) does not parse.
xxh3 is no cryptographic hash: it guards against damage, while the folder's permissions (0700)
guard against people.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from bul.blocks.prefix import Buffer

__all__ = [
    "ALIGN_BYTES",
    "DEAD_MAGIC",
    "ENCODINGS",
    "FOOTER_BYTES",
    "LAYOUT_VERSION",
    "RECORD_HEADER_BYTES",
    "RECORD_MAGIC",
    "SEGMENT_HEADER_BYTES",
    "TOC_DTYPE",
    "BlockHeader",
    "SegmentFooter",
    "SegmentHeader",
    "encode_footer",
    "encode_record_header",
    "encode_segment_header",
    "padded",
    "parse_footer",
    "parse_record_header",
    "parse_segment_header",
    "payload_checksum",
    "payload_matches",
    "sound_payload",
    "toc_matches",
]

LAYOUT_VERSION: Final = 1
"""Raised with any change below; a segment of another version is refused, never misread."""

ALIGN_BYTES: Final = 64
RECORD_HEADER_BYTES: Final = 192
SEGMENT_HEADER_BYTES: Final = 128
FOOTER_BYTES: Final = 64

RECORD_MAGIC: Final = b"BULb"
DEAD_MAGIC: Final = b"DEAD"
_SEGMENT_MAGIC: Final = b"BULSEGMT"
_FOOTER_MAGIC: Final = b"BULTOC\0\0"

ENCODINGS: Final = ("raw", "lz4", "zstd", "int8")
"""By number in the header. `int8` is the engine's lossy encoding and part of the identity."""

_CHECKSUM_BYTES: Final = 16
_U64: Final = (1 << 64) - 1
_HAS_PARENT: Final = 1

# magic, version, encoding, flags, tokens, reserved, stored bytes, raw bytes, expiry (ms),
# identity, key, parent, payload checksum; then zeros up to the header's own checksum.
_RECORD: Final = struct.Struct("<4sHBBIIQQQ32s32s32s16s24x")
# Where in a record header; the hot path reads these alone.
_SOUND: Final = RECORD_MAGIC + LAYOUT_VERSION.to_bytes(2, "little")
_ENCODING_AT: Final = 6
_LENGTHS: Final = struct.Struct("<QQQ")
_LENGTHS_AT: Final = 16
_IDENTITY_AT: Final = 40
_KEY_AT: Final = 72
_CHECKSUM_AT: Final = 136
_SEGMENT: Final = struct.Struct("<8sHHIQQQ32s40x")
_FOOTER: Final = struct.Struct("<8sQQ16s8x")

TOC_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("key", "V32"),
        ("offset", "<u8"),
        ("record_bytes", "<u8"),
        ("tokens", "<u4"),
        ("expires_s", "<u4"),
        ("reserved", "<u8"),
    ]
)
"""One row of a sealed segment's table of contents; 64 bytes."""

assert _RECORD.size + _CHECKSUM_BYTES == RECORD_HEADER_BYTES
assert _SEGMENT.size + _CHECKSUM_BYTES == SEGMENT_HEADER_BYTES
assert _FOOTER.size + _CHECKSUM_BYTES == FOOTER_BYTES
assert TOC_DTYPE.itemsize == 64


class BlockHeader(NamedTuple):
    """What a record says of its payload. key, identity: 32 bytes; parent: 32 bytes or b"".

    stored_bytes: the payload as it lies there; raw_bytes: after decoding. expires_wall_ms: 0 for
    never. dead: deleted or superseded in place; its bytes are not to be served. A tuple, because
    one is made for each block that is written, and it takes a third of a frozen dataclass's time.
    """

    key: bytes
    parent: bytes
    identity: bytes
    tokens: int
    stored_bytes: int
    raw_bytes: int
    checksum: bytes
    encoding: int = 0
    expires_wall_ms: int = 0
    dead: bool = False

    @property
    def record_bytes(self) -> int:
        """Header, payload and padding."""
        return (RECORD_HEADER_BYTES + self.stored_bytes + ALIGN_BYTES - 1) & -ALIGN_BYTES


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SegmentHeader:
    """First bytes of a segment. sequence: its number, also in its name. seed: places records."""

    sequence: int
    seed: int
    identity: bytes
    created_wall_ms: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SegmentFooter:
    """Last bytes of a sealed segment: where its table of contents lies, and its checksum."""

    toc_offset: int
    rows: int
    toc_checksum: bytes


def padded(size: int) -> int:
    """`size` rounded up to the next record boundary."""
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES


def payload_checksum(payload: Buffer) -> bytes:
    """xxh3-128 of the stored payload, 16 bytes."""
    return xxh3_128_digest(payload)


def _sealed(body: bytes, place: int, skip: int = 0) -> bytes:
    return body + xxh3_128_digest(memoryview(body)[skip:], place & _U64)


def _seal_holds(data: memoryview, size: int, place: int, skip: int = 0) -> bool:
    return xxh3_128_digest(data[skip:size], place & _U64) == data[size : size + _CHECKSUM_BYTES]


def encode_record_header(header: BlockHeader, place: int, checksum: bytes = b"") -> bytes:
    """192 bytes. `place` is the segment's seed plus the record's offset.

    checksum: of the payload, if the header does not have it yet. The magic stays outside the
    header's own, so that a record can be marked dead by four bytes.
    """
    body = _RECORD.pack(
        DEAD_MAGIC if header.dead else RECORD_MAGIC,
        LAYOUT_VERSION,
        header.encoding,
        _HAS_PARENT if header.parent else 0,
        header.tokens,
        0,
        header.stored_bytes,
        header.raw_bytes,
        header.expires_wall_ms,
        header.identity,
        header.key,
        header.parent,
        checksum or header.checksum,
    )
    return _sealed(body, place, skip=len(RECORD_MAGIC))


def parse_record_header(data: Buffer, place: int) -> BlockHeader | None:
    """The header at the start of `data`, or `None` for anything that is not exactly one."""
    view = memoryview(data)
    if len(view) < RECORD_HEADER_BYTES:
        return None
    if not _seal_holds(view, _RECORD.size, place, skip=len(RECORD_MAGIC)):
        return None
    fields = _RECORD.unpack_from(view)
    magic, version, encoding, flags, tokens, _, stored, raw, expires = fields[:9]
    identity, key, parent, checksum = fields[9:]
    if magic not in (RECORD_MAGIC, DEAD_MAGIC) or version != LAYOUT_VERSION:
        return None
    if encoding >= len(ENCODINGS):
        return None
    return BlockHeader(
        key=key,
        parent=parent if flags & _HAS_PARENT else b"",
        identity=identity,
        tokens=tokens,
        stored_bytes=stored,
        raw_bytes=raw,
        checksum=checksum,
        encoding=encoding,
        expires_wall_ms=expires,
        dead=magic == DEAD_MAGIC,
    )


def payload_matches(header: BlockHeader, payload: Buffer) -> bool:
    """Whether these are the bytes that the header speaks of: length, then checksum."""
    return len(payload) == header.stored_bytes and xxh3_128_digest(payload) == header.checksum


def sound_payload(
    data: Buffer, place: int, key: bytes, identity: bytes
) -> tuple[memoryview, int, int, int] | None:
    """(payload, encoding, raw bytes, expiry in ms) of a record that is all it should be.

    The same judgement as `parse_record_header` and `payload_matches` with key, identity and "not
    dead" on top, in a third of the time: every read of a block goes through it. `None` does not
    say why; the parser does.
    """
    view = memoryview(data)
    head = bytes(view[:RECORD_HEADER_BYTES])
    if len(head) < RECORD_HEADER_BYTES or not head.startswith(_SOUND):
        return None
    seal = head[_RECORD.size :]
    if xxh3_128_digest(head[len(RECORD_MAGIC) : _RECORD.size], place & _U64) != seal:
        return None
    if head[_KEY_AT : _KEY_AT + 32] != key or head[_IDENTITY_AT : _IDENTITY_AT + 32] != identity:
        return None
    stored, raw, expires = _LENGTHS.unpack_from(head, _LENGTHS_AT)
    payload = view[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + stored]
    if (
        len(payload) != stored
        or xxh3_128_digest(payload) != head[_CHECKSUM_AT : _CHECKSUM_AT + _CHECKSUM_BYTES]
    ):
        return None
    return payload, head[_ENCODING_AT], raw, expires


def encode_segment_header(header: SegmentHeader) -> bytes:
    """128 bytes, at offset 0 of a segment file."""
    body = _SEGMENT.pack(
        _SEGMENT_MAGIC,
        LAYOUT_VERSION,
        0,
        0,
        header.sequence,
        header.seed,
        header.created_wall_ms,
        header.identity,
    )
    return _sealed(body, 0)


def parse_segment_header(data: Buffer) -> SegmentHeader | None:
    """The segment header at the start of `data`; `None` also for another layout version."""
    view = memoryview(data)
    if len(view) < SEGMENT_HEADER_BYTES or not _seal_holds(view, _SEGMENT.size, 0):
        return None
    magic, version, _, _, sequence, seed, created, identity = _SEGMENT.unpack_from(view)
    if magic != _SEGMENT_MAGIC or version != LAYOUT_VERSION:
        return None
    return SegmentHeader(sequence=sequence, seed=seed, identity=identity, created_wall_ms=created)


def encode_footer(toc_offset: int, toc: npt.NDArray[np.void], seed: int) -> bytes:
    """64 bytes, the last of a sealed segment, right after its table of contents."""
    checksum = xxh3_128_digest(toc.tobytes(), seed & _U64)
    return _sealed(_FOOTER.pack(_FOOTER_MAGIC, toc_offset, len(toc), checksum), seed)


def parse_footer(data: Buffer, seed: int) -> SegmentFooter | None:
    """The footer in exactly these 64 bytes, or `None`."""
    view = memoryview(data)
    if len(view) != FOOTER_BYTES or not _seal_holds(view, _FOOTER.size, seed):
        return None
    magic, toc_offset, rows, checksum = _FOOTER.unpack_from(view)
    if magic != _FOOTER_MAGIC:
        return None
    return SegmentFooter(toc_offset=toc_offset, rows=rows, toc_checksum=checksum)


def toc_matches(footer: SegmentFooter, toc: Buffer, seed: int) -> bool:
    """Whether these bytes are the table of contents that the footer speaks of."""
    if len(toc) != footer.rows * TOC_DTYPE.itemsize:
        return False
    return xxh3_128_digest(toc, seed & _U64) == footer.toc_checksum
