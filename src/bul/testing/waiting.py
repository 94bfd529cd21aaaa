"""Waiting for what other threads and processes do, without sleeping a fixed time.

Refuses to wait for ever: what does not come true in time is an AssertionError that says what.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

__all__ = ["eventually", "is_alive", "until"]

POLL_S = 0.02


async def eventually(
    what: str,
    predicate: Callable[[], bool | Awaitable[bool]],
    deadline_s: float = 20.0,
    poll_s: float = POLL_S,
) -> None:
    """Return once `predicate()` is true; `what` is the sentence that should have come true."""
    end_s = time.monotonic() + deadline_s
    while True:
        outcome = predicate()
        if inspect.isawaitable(outcome):
            outcome = await outcome
        if outcome:
            return
        assert time.monotonic() < end_s, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(poll_s)


async def until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """`eventually` for a state of this process, looked at each millisecond."""
    await eventually(str(condition), condition, timeout_s, poll_s=0.001)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
