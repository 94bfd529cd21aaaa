"""How late an event loop runs what is due: the measure of "the event loop never blocks"."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Self

__all__ = ["LoopLag"]


class LoopLag:
    """Samples the running loop between `async with` and its end.

    async with LoopLag() as lag:
        ...
    lag.quantile_ms(0.99)
    """

    def __init__(self, interval_s: float = 0.005) -> None:
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self.samples_ms: list[float] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def quantile_ms(self, share: float) -> float:
        """Nearest-rank quantile in milliseconds; 0.0 without samples."""
        ordered = sorted(self.samples_ms)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0

    async def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + self._interval_s
            await asyncio.sleep(self._interval_s)
            self.samples_ms.append(max(0.0, loop.time() - due_s) * 1000)
