"""From the runner's thread to the event loops: one wake-up for all that a turn produced.

Refuses to wake a loop per token or per request: `call_soon_threadsafe` writes to a socket pair,
and with many streams these writes, not the tokens, would fill the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from bul.errors import BulError
from bul.inference.contract import Delta

__all__ = ["Outbox", "Postman"]


class Outbox:
    """What one request has produced and its client has not read.

    Bound: a request posts at most one item per output token and one more, and its tokens are
    clipped to the context; a client that does not read costs that much and no slot.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: asyncio.Queue[Delta | BulError] = asyncio.Queue()

    async def get(self) -> Delta:
        """The next delta. Raises the error that ended the request."""
        item = await self._items.get()
        if isinstance(item, BulError):
            raise item
        return item

    def deliver(self, item: Delta | BulError) -> None:
        """On the event loop only."""
        self._items.put_nowait(item)


def _deliver_all(batch: Iterable[tuple[Outbox, Delta | BulError]]) -> None:
    for outbox, item in batch:
        outbox.deliver(item)


class Postman:
    """Collects items in the runner's thread and hands them over per event loop."""

    def __init__(self) -> None:
        self._pending: dict[asyncio.AbstractEventLoop, list[tuple[Outbox, Delta | BulError]]] = {}

    def post(self, outbox: Outbox, item: Delta | BulError) -> None:
        """Queue `item` for the next `flush`."""
        self._pending.setdefault(outbox.loop, []).append((outbox, item))

    def flush(self) -> list[asyncio.AbstractEventLoop]:
        """One wake-up per event loop with something to get; returns loops found closed."""
        if not self._pending:
            return []
        pending, self._pending = self._pending, {}
        closed = []
        for loop, batch in pending.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, batch)
            except RuntimeError:
                closed.append(loop)
        return closed
