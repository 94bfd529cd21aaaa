"""Lossless encodings of a stored payload: raw, lz4, zstd, by the number in the record's header.

Refuses to keep an encoding that does not pay: below 1/16 of saving the payload stays raw. Refuses,
with `None`, bytes that do not decode to exactly the length that the header states.
"""

from __future__ import annotations

import lz4.block
import zstandard

from bul.blocks.format import ENCODINGS
from bul.blocks.prefix import Buffer

__all__ = ["decode", "encode"]

_RAW = ENCODINGS.index("raw")
_LZ4 = ENCODINGS.index("lz4")
_ZSTD = ENCODINGS.index("zstd")
_ZSTD_LEVEL = 1
"""KV rows are nearly noise: higher levels take longer and save nothing more."""


def encode(payload: Buffer, compression: str) -> tuple[int, Buffer]:
    """The encoding's number and the bytes to store; the payload itself when that is as good."""
    if compression == "none" or len(payload) == 0:
        return _RAW, payload
    if compression == "lz4":
        number, packed = _LZ4, lz4.block.compress(payload, store_size=False)
    else:
        number, packed = _ZSTD, zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(payload)
    if len(packed) > len(payload) * 15 // 16:
        return _RAW, payload
    return number, packed


def decode(encoding: int, stored: Buffer, raw_bytes: int) -> Buffer | None:
    """The payload, or `None` if these bytes are not an encoding of `raw_bytes` bytes."""
    if encoding == _LZ4:
        try:
            raw = lz4.block.decompress(stored, uncompressed_size=raw_bytes)
        except (lz4.block.LZ4BlockError, ValueError, MemoryError):
            return None
    elif encoding == _ZSTD:
        try:
            raw = zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw_bytes)
        except (zstandard.ZstdError, MemoryError):
            return None
    else:
        return stored if len(stored) == raw_bytes else None
    return raw if len(raw) == raw_bytes else None
