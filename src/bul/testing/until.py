"""Waiting for a state that some other thread or process will reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["until"]


async def until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Return once `condition` holds. Raises TimeoutError with its name after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not condition():
        if loop.time() > deadline_s:
            raise TimeoutError(f"{condition} did not come true within {timeout_s} s")
        await asyncio.sleep(0.001)
