"""What the scaler decided, on which signals, and whether it was done: bounded, and JSON lines.

Refuses to grow: so many records in memory, and a log file of two halves on disk.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence

import msgspec

from bul.scaling.decision import Decision, Direction
from bul.scaling.drivers.logfile import BoundedLog
from bul.scaling.signals import Signals

__all__ = ["History", "Record"]

RECORDS_MAX = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One tick. wall_s: since the epoch. acted: the driver did it. finding: what went wrong."""

    wall_s: float
    policy: str
    decision: Decision
    replicas_before: int
    acted: bool
    advisory: bool = False
    finding: str = ""
    signals: Signals | None = None

    def line(self) -> str:
        """For people: from how many to how many, and why."""
        before, wanted = self.replicas_before, self.decision.replicas
        # Without data a hold wants no number, which is 0: it must not read like a way down.
        held = wanted == before or self.decision.direction is Direction.HOLD
        change = f"{before}" if held else f"{before} -> {wanted}"
        parts = [f"{self.decision.direction.value:4} {change}: {self.decision.reason}"]
        if self.advisory and self.decision.direction is not Direction.HOLD:
            parts.append("advice only, nothing was done")
        elif self.decision.direction is not Direction.HOLD and not self.acted:
            parts.append("not done")
        parts += [said for said in (self.finding, self.decision.alert) if said]
        return "; ".join(parts)

    def document(self) -> dict[str, object]:
        """Plain values for JSON; what is unknown is left out, NaN included."""
        signals = {} if self.signals is None else msgspec.structs.asdict(self.signals)
        known = {n: v for n, v in signals.items() if v is not None and math.isfinite(v)}
        return {
            "time_s": round(self.wall_s, 3),
            "policy": self.policy,
            "direction": self.decision.direction.value,
            "replicas": self.decision.replicas,
            "replicas_before": self.replicas_before,
            "reason": self.decision.reason,
            "alert": self.decision.alert,
            "acted": self.acted,
            "advisory": self.advisory,
            "finding": self.finding,
            "text": self.line(),
            "signals": known,
        }


class History:
    """The last records, and all of them appended to `log` while it has room."""

    def __init__(self, log: BoundedLog | None = None, records_max: int = RECORDS_MAX) -> None:
        self._records: deque[Record] = deque(maxlen=records_max)
        self._log = log

    def add(self, record: Record) -> None:
        """Never raises for the disk's faults."""
        self._records.append(record)
        if self._log is not None:
            self._log.write(msgspec.json.encode(record.document()) + b"\n")

    def close(self) -> None:
        """Close the log; records stay readable."""
        if self._log is not None:
            self._log.close()

    def records(self) -> Sequence[Record]:
        """Oldest first."""
        return tuple(self._records)
