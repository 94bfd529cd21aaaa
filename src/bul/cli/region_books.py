"""Keeps a region's book while it runs: looks at how many replicas there are, notes decisions.

Refuses to bill for what another supervisor leads, and to forget a replica that the driver cannot
list just now: the last count stands until there is a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import typing
from collections.abc import Callable, Mapping

from bul.clock import SystemClock

if typing.TYPE_CHECKING:
    from bul.accounts.book import RegionBook
    from bul.scaling.drivers.contract import Driver
    from bul.scaling.history import Record

__all__ = ["Hours", "RegionBooks", "books_text"]

LOOK_S = 1.0
LIST_S = 10.0

Hours = tuple[int, float]
"""(replicas that are paid for now, replica-seconds of the present UTC day)."""


class RegionBooks:
    """book: None keeps none. leads: whether this supervisor is the region's writer now."""

    def __init__(self, book: RegionBook | None, driver: Driver, leads: Callable[[], bool]) -> None:
        self._book = book
        self._driver = driver
        self._leads = leads
        self._clock = SystemClock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look now, and every second."""
        if self._book is not None:
            self._task = asyncio.create_task(self._run(self._book))

    async def close(self) -> None:
        """Call it when the last replica has ended: a drain is paid for."""
        if self._task is None or self._book is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await self._look(self._book)

    def note(self, record: Record) -> None:
        """A decision of the scaler."""
        if self._book is None:
            return
        from bul.accounts.book import DecisionRow

        decision = record.decision
        self._book.decide(
            DecisionRow(
                at_s=record.wall_s,
                policy=record.policy,
                direction=decision.direction.value,
                replicas_before=record.replicas_before,
                replicas=decision.replicas,
                reason=decision.reason,
                acted=record.acted,
                advisory=record.advisory,
                alert=decision.alert,
                finding=record.finding,
            )
        )

    def hours(self) -> Hours | None:
        """For the live page; None without a book."""
        if self._book is None:
            return None
        return self._book.replicas, self._book.day_replica_seconds(self._clock.wall_s())

    def text(self) -> str:
        """Its metrics in Prometheus' text format."""
        return "" if self._book is None else books_text(self._book.stats())

    async def _run(self, book: RegionBook) -> None:
        while True:
            await self._look(book)
            await asyncio.sleep(LOOK_S)

    async def _look(self, book: RegionBook) -> None:
        count = book.replicas
        with contextlib.suppress(Exception):  # a driver's fault is the scaler's to tell
            async with asyncio.timeout(LIST_S):
                replicas = await self._driver.replicas()
                count = sum(replica.state != "failed" for replica in replicas)
        book.see(self._clock.now_s(), self._clock.wall_s(), count if self._leads() else 0)


def books_text(stats: Mapping[str, float]) -> str:
    """A book's figures in Prometheus' text format."""
    lines = []
    for name, value in stats.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP bul_{name} {METRICS[name]}", f"# TYPE bul_{name} {kind}"]
        lines.append(f"bul_{name} {value}")
    return "\n".join(lines) + "\n"


METRICS = {
    "region_decisions_written_total": "Decisions that are in the accounts' database.",
    "region_decisions_unwritten": "Decisions that wait for it.",
    "region_decisions_dropped_total": "Decisions dropped because too many waited.",
    "region_replica_seconds_total": "Replica time of this region, from start to end of drain.",
    "region_replica_seconds_unwritten": "Replica time that waits for the database.",
    "region_write_failures_total": "Tries to write either that failed.",
}
