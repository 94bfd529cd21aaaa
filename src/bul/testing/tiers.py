"""Tiers for tests: `MemoryTier` that works, and `FaultyTier` that raises, hangs, is slow or lies.

They refuse to be random by themselves: a fault is chosen by the test, or by a seed that it gives.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, CheckReport, Tier

__all__ = ["Fault", "FaultyTier", "MemoryTier"]


class MemoryTier:
    """A dict of copies: unbounded, verified by nature, with no order among blocks."""

    def __init__(self, name: str = "memory", wall_s: Callable[[], float] = time.time) -> None:
        self._name = name
        self._wall_s = wall_s
        self._lock = threading.Lock()
        self.records: dict[bytes, BlockRecord] = {}
        self.calls: list[tuple[str, int]] = []
        """(method, keys) of every call: tests count batches with it."""
        self._hits_total = 0
        self._misses_total = 0
        self.closed = False

    @property
    def name(self) -> str:
        return self._name

    def match(self, keys: Sequence[bytes]) -> int:
        with self._lock:
            self.calls.append(("match", len(keys)))
            here = (self._live(key) is not None for key in keys)
            return next((i for i, hit in enumerate(here) if not hit), len(keys))

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        with self._lock:
            self.calls.append(("get", len(keys)))
            found = [self._live(key) for key in keys]
            hits = sum(record is not None for record in found)
            self._hits_total += hits
            self._misses_total += len(keys) - hits
            return [None if record is None else record.payload for record in found]

    def set(self, records: Sequence[BlockRecord]) -> int:
        with self._lock:
            self.calls.append(("set", len(records)))
            for record in records:
                self.records[record.key] = dataclasses.replace(
                    record, payload=bytes(record.payload)
                )
            return len(records)

    def delete(self, keys: Sequence[bytes]) -> int:
        with self._lock:
            self.calls.append(("delete", len(keys)))
            return sum(self.records.pop(key, None) is not None for key in keys)

    def clear(self) -> None:
        with self._lock:
            self.records.clear()

    def stats(self) -> Mapping[str, float]:
        with self._lock:
            return {
                "blocks": len(self.records),
                "bytes": sum(len(record.payload) for record in self.records.values()),
                "hits_total": self._hits_total,
                "misses_total": self._misses_total,
            }

    def check(self, *, fix: bool = False) -> CheckReport:
        stats = self.stats()
        return CheckReport(blocks=int(stats["blocks"]), bytes=int(stats["bytes"]))

    def close(self) -> None:
        self.closed = True

    def _live(self, key: bytes) -> BlockRecord | None:
        record = self.records.get(key)
        if record is not None and record.expires_wall_s and self._wall_s() >= record.expires_wall_s:
            return None
        return record


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What one call does instead of, or before, its work. All of it off is no fault.

    error: raised. hang: wait until `FaultyTier.unhang`. delay_s, bytes_per_s: how slow.
    answer: returned in place of the true result (a lie), if `lies`.
    """

    error: Exception | None = None
    hang: bool = False
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    lies: bool = False
    answer: object = None


class FaultyTier:
    """`inner` behind faults: `choose(method)` is asked before each call.

    A hung call waits for `unhang()` and then does its work, as a disk that comes back does.
    """

    def __init__(self, inner: Tier, choose: Callable[[str], Fault] = lambda _: Fault()) -> None:
        self.inner = inner
        self.choose = choose
        self._go_on = threading.Event()
        self.hanging = threading.Semaphore(0)
        """Released once for each call that begins to hang, so that a test can wait for it."""

    @property
    def name(self) -> str:
        return self.inner.name

    def unhang(self) -> None:
        """Let every hung call go on, and no later one hang."""
        self._go_on.set()

    def match(self, keys: Sequence[bytes]) -> int:
        return cast("int", self._act("match", lambda: self.inner.match(keys)))

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        return cast("list[Buffer | None]", self._act("get", lambda: self.inner.get(keys)))

    def set(self, records: Sequence[BlockRecord]) -> int:
        return cast("int", self._act("set", lambda: self.inner.set(records)))

    def delete(self, keys: Sequence[bytes]) -> int:
        return cast("int", self._act("delete", lambda: self.inner.delete(keys)))

    def clear(self) -> None:
        self._act("clear", self.inner.clear)

    def stats(self) -> Mapping[str, float]:
        return cast("Mapping[str, float]", self._act("stats", self.inner.stats))

    def check(self, *, fix: bool = False) -> CheckReport:
        return self.inner.check(fix=fix)

    def close(self) -> None:
        self._act("close", self.inner.close)

    def _act(self, method: str, work: Callable[[], object]) -> object:
        fault = self.choose(method)
        if fault.hang:
            self.hanging.release()
            self._go_on.wait()
        if fault.delay_s:
            time.sleep(fault.delay_s)
        if fault.error is not None:
            raise fault.error
        result = fault.answer if fault.lies else work()
        if fault.bytes_per_s and isinstance(result, list):
            time.sleep(sum(len(block) for block in result if block) / fault.bytes_per_s)
        return result
