"""Any tier, with KV kept as int8: half the bytes, and an error that is stated, not hidden.

It refuses to pretend: blocks that come back are not the bytes that were set, so the engine's
identity must carry `quantisation="int8"`. RAM keeps the exact bytes; only what went through the
tier is rounded.

Symmetric per channel: for each layer, K or V, and channel, the scale is max|x| over the block's
tokens / 127 (KIVI, arXiv 2402.02750, found K's outliers to lie in channels). Payload: 1 byte of
kind, float32 scales, int8 values. Anything that is not a block of the expected size is passed
through as it is.

Measured on SmolLM2-135M (f16 KV, 64 tokens a block, 16 prompts of 300 random words): 1,474,560
bytes become 783,361; relative RMS error 0.38 % of K and 0.53 % of V; 12 of 16 prompts gave the same
32 greedy tokens as exact KV; 3.6 ms to encode a block, 1.7 ms to decode it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, CheckReport, Tier

__all__ = ["Int8Codec", "QuantisedTier"]

OPTIONAL = ("probe", "delete_values", "hottest")
RAW, INT8 = b"\x00", b"\x01"


class Int8Codec:
    """Blocks of `groups` (layers x K/V) matrices of `tokens` rows of `row_bytes` bytes of f16."""

    def __init__(self, *, groups: int, tokens: int, row_bytes: int) -> None:
        assert row_bytes % 2 == 0, "f16 rows"
        self._shape = (groups, tokens, row_bytes // 2)
        self.block_bytes = groups * tokens * row_bytes
        self.encoded_bytes = 1 + groups * (row_bytes // 2) * (4 + tokens)

    def encode(self, payload: Buffer) -> bytes:
        """One block as int8, or as it is if it is not one, or not finite."""
        if memoryview(payload).nbytes != self.block_bytes:
            return RAW + bytes(payload)
        values = np.frombuffer(payload, np.float16).reshape(self._shape).astype(np.float32)
        peaks = np.abs(values).max(axis=1, keepdims=True)
        if not np.isfinite(peaks).all():
            return RAW + bytes(payload)
        scales: npt.NDArray[np.float32] = (peaks / 127.0).astype(np.float32)
        safe = np.where(scales > 0, scales, 1.0)
        rounded = np.rint(values / safe).astype(np.int8)
        return b"".join((INT8, scales.tobytes(), rounded.tobytes()))

    def decode(self, payload: Buffer) -> Buffer | None:
        """The block again; `None` for what `encode` did not make."""
        view = memoryview(payload).cast("B")
        if view[:1] == RAW:
            return view[1:]
        if view[:1] != INT8 or view.nbytes != self.encoded_bytes:
            return None
        groups, _, channels = self._shape
        end = 1 + groups * channels * 4
        scales = np.frombuffer(view[1:end], np.float32).reshape(groups, 1, channels)
        rounded = np.frombuffer(view[end:], np.int8).reshape(self._shape)
        return (rounded * scales).astype(np.float16).tobytes()


class QuantisedTier:
    """`inner` behind a codec; everything else is `inner`'s."""

    def __init__(self, inner: Tier, codec: Int8Codec) -> None:
        self._inner = inner
        self._codec = codec

    @property
    def name(self) -> str:
        return self._inner.name

    def match(self, keys: Sequence[bytes]) -> int:
        return self._inner.match(keys)

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        found = self._inner.get(keys)
        return [None if block is None else self._codec.decode(block) for block in found]

    def set(self, records: Sequence[BlockRecord]) -> int:
        return self._inner.set(
            [
                dataclasses.replace(record, payload=self._codec.encode(record.payload))
                for record in records
            ]
        )

    def delete(self, keys: Sequence[bytes]) -> int:
        return self._inner.delete(keys)

    def __getattr__(self, name: str) -> Any:
        """The methods of OPTIONAL, if `inner` has them."""
        if name not in OPTIONAL:
            raise AttributeError(name)
        return getattr(self._inner, name)

    def clear(self) -> None:
        self._inner.clear()

    def stats(self) -> Mapping[str, float]:
        return self._inner.stats()

    def check(self, *, fix: bool = False) -> CheckReport:
        return self._inner.check(fix=fix)

    def close(self) -> None:
        self._inner.close()
