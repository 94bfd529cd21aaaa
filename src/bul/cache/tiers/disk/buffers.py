"""Memory for payloads, used again once nobody looks at it any more.

Refuses to hand out what somebody can still see: a buffer comes back when the last view of it is
gone, which its reference count says and nobody else. Why at all: fresh memory costs a page fault
for every 4 KiB, and a load into it takes three to seven times as long as the copy itself.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool"]

POOL_BYTES_MAX: Final = 64 << 20
SIZES_MAX: Final = 2
"""A model's blocks have one size; values and compressed blocks have many, and pass through."""
SMALL_BYTES: Final = 32 << 10

_Array = npt.NDArray[np.uint8]


class _Lease(np.ndarray[tuple[int, ...], np.dtype[np.uint8]]):
    """A view of a buffer that gives it back at its end."""

    free: deque[_Array] | None = None

    def __del__(self) -> None:
        # In any thread, at any time: so a deque, whose append takes no lock.
        if self.free is not None and isinstance(self.base, np.ndarray):
            self.free.append(self.base)


class BufferPool:
    """At most `bytes_max` of unused memory, of the last two sizes asked for. Thread-safe."""

    def __init__(self, bytes_max: int = POOL_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._free: dict[int, deque[_Array]] = {}

    def take(self, size: int) -> memoryview:
        """`size` writable bytes of any content. Raises MemoryError."""
        if size < SMALL_BYTES:
            return memoryview(bytearray(size))
        free = self._free.get(size)
        if free is None:
            free = self._make_room_for(size)
        try:
            buffer = free.pop()
        except IndexError:
            buffer = np.empty(size, np.uint8)
        lease = buffer.view(_Lease)
        lease.free = free
        return memoryview(lease)  # type: ignore[arg-type]  # an array is a buffer

    def _make_room_for(self, size: int) -> deque[_Array]:
        with self._lock:
            while len(self._free) >= SIZES_MAX and size not in self._free:
                del self._free[next(iter(self._free))]
            length = self._bytes_max // SIZES_MAX // size
            return self._free.setdefault(size, deque(maxlen=length))
