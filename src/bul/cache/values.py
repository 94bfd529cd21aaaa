"""General values (`get` and `set` by a text key): what is accepted, and how it is kept.

It refuses everything but bytes, str, JSON values and NumPy arrays, with a TypeError that names
these: no pickle, so nothing that is read back can run code. Subclasses and tuples are refused too,
because they would come back as something else. Values are kept encoded: what a caller does to its
object afterwards does not change the cache, and arrays come back read-only, without a copy.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

import numpy as np

__all__ = [
    "KEY_CHARS_MAX",
    "VALUE_OVERHEAD_BYTES",
    "StoredValue",
    "ValueStore",
    "check_key",
    "decode",
    "encode",
]

KEY_CHARS_MAX = 8192
"""Longest key, in Unicode code points."""

JSON_DEPTH_MAX = 64
VALUE_OVERHEAD_BYTES = 256
"""What a value costs beside its bytes: dict entry, key object, bookkeeping."""

ACCEPTED = "bytes, str, a JSON value (None, bool, int, float, list, dict) or a NumPy array"


@dataclasses.dataclass(frozen=True, slots=True)
class StoredValue:
    """A value as it is kept. `dtype` and `shape` are of an array, else `None` and ().

    version: 0 if no other host can have written it; fresh_until_s: until then RAM is believed.
    """

    kind: Literal["bytes", "str", "json", "array"]
    data: bytes | str
    size_bytes: int
    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    expires_s: float = 0.0
    version: int = 0
    fresh_until_s: float = 0.0


def check_key(key: object) -> str:
    """`key` itself, if it is a str of at most KEY_CHARS_MAX characters."""
    if not isinstance(key, str):
        raise TypeError(f"a key must be a str, was {type(key).__name__}")
    if len(key) > KEY_CHARS_MAX:
        raise ValueError(f"a key may have {KEY_CHARS_MAX} characters, this one has {len(key)}")
    return key


def encode(value: object, *, expires_s: float = 0.0) -> StoredValue:
    """`value` as it is kept. TypeError for other types, ValueError for NaN or too deep JSON."""
    if type(value) is bytes:
        return StoredValue("bytes", value, len(value), expires_s=expires_s)
    if type(value) is str:
        # At most 4 bytes a character in CPython; the exact size would cost an encoding.
        return StoredValue("str", value, len(value) * 4, expires_s=expires_s)
    if type(value) is np.ndarray:
        if value.dtype.hasobject:
            raise TypeError(f"an array of Python objects cannot be kept; accepted: {ACCEPTED}")
        data = value.tobytes()
        return StoredValue("array", data, len(data), value.dtype, value.shape, expires_s)
    _check_json(value, 0)
    data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    return StoredValue("json", data, len(data), expires_s=expires_s)


def decode(stored: StoredValue) -> object:
    """What was given to `encode`; JSON is a fresh object, an array a read-only view."""
    if stored.kind == "json":
        return json.loads(stored.data)
    if stored.kind == "array":
        assert isinstance(stored.data, bytes)
        array: np.ndarray = np.ndarray(stored.shape, stored.dtype, stored.data)
        return array
    return stored.data


def _check_json(value: object, depth: int) -> None:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return
    if kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]  # it is a float
            raise ValueError(f"JSON has no {value!r}; keep it in a NumPy array")
        return
    if kind not in (list, dict):
        raise TypeError(f"a value must be {ACCEPTED}, was {kind.__name__}")
    if depth >= JSON_DEPTH_MAX:
        raise ValueError(f"a JSON value may be {JSON_DEPTH_MAX} levels deep")
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise TypeError(f"a JSON object's keys must be str, was {type(key).__name__}")
        value = list(value.values())
    for item in value:  # type: ignore[attr-defined]  # a list
        _check_json(item, depth + 1)


class ValueStore:
    """Least recently used values, bounded in bytes. No lock of its own."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.hits_total = 0
        self.misses_total = 0
        self.evictions_total = 0
        self.refused_total = 0
        self._values: OrderedDict[str, StoredValue] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, now_s: float) -> StoredValue | None:
        """The value, now the most recently used, or `None`."""
        stored = self._values.get(key)
        if stored is not None and stored.expires_s and now_s >= stored.expires_s:
            self.delete(key)
            stored = None
        if stored is None:
            self.misses_total += 1
            return None
        self._values.move_to_end(key)
        self.hits_total += 1
        return stored

    def peek(self, key: str) -> StoredValue | None:
        """What is here, expired or not; counts for nothing."""
        return self._values.get(key)

    def set(self, key: str, stored: StoredValue, *, replace: bool = True) -> bool:
        """Keep; False if it is larger than the whole budget (the old value is gone then too).

        With `replace` off a value that is here stays: what a slow read brings may be older.
        """
        if not replace and key in self._values:
            return True
        self.delete(key)
        cost = self._cost(key, stored)
        if cost > self.bytes_max:
            self.refused_total += 1
            return False
        while self.bytes + cost > self.bytes_max:
            oldest_key, oldest = self._values.popitem(last=False)
            self.bytes -= self._cost(oldest_key, oldest)
            self.evictions_total += 1
        self._values[key] = stored
        self.bytes += cost
        return True

    def delete(self, key: str) -> bool:
        stored = self._values.pop(key, None)
        if stored is None:
            return False
        self.bytes -= self._cost(key, stored)
        return True

    def clear(self) -> None:
        self._values.clear()
        self.bytes = 0

    def stats(self) -> Mapping[str, float]:
        return {
            "values": len(self._values),
            "bytes": self.bytes,
            "hits_total": self.hits_total,
            "misses_total": self.misses_total,
            "evictions_total": self.evictions_total,
            "refused_total": self.refused_total,
        }

    @staticmethod
    def _cost(key: str, stored: StoredValue) -> int:
        return stored.size_bytes + 4 * len(key) + VALUE_OVERHEAD_BYTES
