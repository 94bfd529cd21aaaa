"""Ctrl-C as a value: the first asks to stop, the second does not wait any longer.

Refuses to interrupt a task at an arbitrary line, as KeyboardInterrupt would.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Self

__all__ = ["StopSignals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Installed on the running loop while the `with` block lasts."""

    def __init__(self, *, on_second: Callable[[], None]) -> None:
        self._stop = asyncio.Event()
        self._on_second = on_second

    def __enter__(self) -> Self:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    async def wait(self) -> None:
        """Until somebody asks to stop."""
        await self._stop.wait()

    async def race(self, work: Coroutine[Any, Any, object]) -> bool:
        """Run `work` until it ends or somebody asks to stop; whether it ended. Raises its error."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            return task.done()
        finally:
            task.cancel()
            stop.cancel()
            await asyncio.wait({task, stop})

    def _received(self) -> None:
        if self._stop.is_set():
            self._on_second()
        self._stop.set()
