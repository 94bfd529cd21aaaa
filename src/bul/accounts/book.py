"""A region's book: what its scaler decided, and how long it had how many replicas.

Refuses to hold anything up, as the usage ledger does: records wait in memory while the database is
away. Bounded: beyond `DECISIONS_MAX` waiting decisions the oldest is dropped and counted; replica
time is summed by hour, and beyond `HOURS_MAX` hours goes into the newest one that is there.

What a scaler says every few seconds is mostly the same. Kept are decisions that were acted on. Of
those that changed nothing one in `REPEAT_S` is kept at most, and only when it differs from the last
one in more than its numbers; those with an alert or a finding are counted apart from the others.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from bul.accounts.batches import Batches
from bul.accounts.usage import HOUR_S

__all__ = ["DAY_S", "DecisionRow", "Records", "RegionBook", "Watched", "day_of"]

DECISIONS_MAX = 1000
HOURS_MAX = 1000
REPEAT_S = 300.0
DAY_S = 86_400
TEXT_MAX = 500
_NUMBER = re.compile(r"\d[\d.,]*")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRow:
    """One decision of the scaler. at_s: since the epoch. acted: the driver did it."""

    at_s: float
    policy: str
    direction: str
    replicas_before: int
    replicas: int
    reason: str
    acted: bool
    advisory: bool = False
    alert: str = ""
    finding: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """Of one hour. seconds: how much of it somebody counted."""

    replica_seconds: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """A batch. hours: start of the hour -> what to add to it."""

    decisions: Sequence[DecisionRow]
    hours: Mapping[int, Watched]


Write = Callable[[str, int, Records, float], bool]


def day_of(wall_s: float) -> int:
    """The start of the UTC day, as all days here."""
    return int(wall_s) // DAY_S * DAY_S


class RegionBook:
    """Thread-safe. region: its name. A region has one writer: its supervisor."""

    def __init__(
        self, region: str, *, decisions_max: int = DECISIONS_MAX, hours_max: int = HOURS_MAX
    ) -> None:
        self.region = region
        self._lock = threading.Lock()
        self._decisions: deque[DecisionRow] = deque()
        self._decisions_max, self._hours_max = decisions_max, hours_max
        self._hours: dict[int, Watched] = {}
        self._batches = Batches(self._taken)
        self._last: dict[bool, tuple[float, object]] = {}
        self._seen: tuple[float, int] | None = None
        self._day_in_database: tuple[int, float] = (0, 0.0)
        self._dropped = self._written = self._pending_decisions = 0
        self._unwritten_s: dict[int, float] = {}
        self._replica_seconds = 0.0

    def decide(self, row: DecisionRow) -> None:
        """Note a decision, unless it says nothing new."""
        if not (row.acted and row.direction != "hold"):
            what = (row.direction, row.replicas_before, row.replicas, _shape(row))
            trouble = bool(row.alert or row.finding)
            since_s, before = self._last.get(trouble, (float("-inf"), None))
            if what == before or row.at_s - since_s < REPEAT_S:
                return
            self._last[trouble] = (row.at_s, what)
        cut = {name: getattr(row, name)[:TEXT_MAX] for name in ("reason", "alert", "finding")}
        with self._lock:
            if len(self._decisions) >= self._decisions_max:
                self._decisions.popleft()
                self._dropped += 1
            self._decisions.append(dataclasses.replace(row, **cut))

    def see(self, now_s: float, wall_s: float, replicas: int) -> None:
        """So many are there now, starting and draining ones included. Between two looks the mean
        of both counts: a replica that came or went was there for half of the time, on average.
        """
        before, self._seen = self._seen, (now_s, replicas)
        if before is None or now_s <= before[0]:
            return
        mean, left_s = (before[1] + replicas) / 2, now_s - before[0]
        end_s = wall_s
        with self._lock:
            while left_s > 0:
                hour_s = int(end_s) // HOUR_S * HOUR_S
                if hour_s == end_s:
                    hour_s -= HOUR_S
                part_s = min(left_s, end_s - hour_s)
                self._add(hour_s, mean * part_s, part_s)
                end_s, left_s = end_s - part_s, left_s - part_s

    def write(self, write: Write, now_s: float) -> None:
        """Offer what is there; whatever `write` raises goes through, and nothing is lost."""
        self._batches.write(write, now_s, self._count)

    def know_day(self, day_s: int, replica_seconds: float) -> None:
        """What the database has of that day; told right after a write."""
        with self._lock:
            self._day_in_database = (day_s, replica_seconds)

    @property
    def replicas(self) -> int:
        """As of the last look; those that are paid for now."""
        return 0 if self._seen is None else self._seen[1]

    def day_replica_seconds(self, wall_s: float) -> float:
        """Of the present UTC day, what is not written yet included."""
        day_s = day_of(wall_s)
        with self._lock:
            known_day_s, known = self._day_in_database
            waiting = sum(s for hour_s, s in self._unwritten_s.items() if hour_s >= day_s)
        return waiting + (known if known_day_s == day_s else 0.0)

    def stats(self) -> Mapping[str, float]:
        """Decisions written, waiting and dropped; replica-seconds seen, and not yet written."""
        with self._lock:
            return {
                "region_decisions_written_total": self._written,
                "region_decisions_unwritten": len(self._decisions) + self._pending_decisions,
                "region_decisions_dropped_total": self._dropped,
                "region_replica_seconds_total": self._replica_seconds,
                "region_replica_seconds_unwritten": sum(self._unwritten_s.values()),
                "region_write_failures_total": self._batches.failures,
            }

    def _add(self, hour_s: int, replica_seconds: float, seconds: float) -> None:
        if hour_s not in self._hours and len(self._hours) >= self._hours_max:
            hour_s = max(self._hours)
        old = self._hours.get(hour_s, Watched(replica_seconds=0.0, seconds=0.0))
        self._hours[hour_s] = Watched(
            replica_seconds=old.replica_seconds + replica_seconds, seconds=old.seconds + seconds
        )
        self._unwritten_s[hour_s] = self._unwritten_s.get(hour_s, 0.0) + replica_seconds
        self._replica_seconds += replica_seconds

    def _taken(self) -> Records | None:
        with self._lock:
            if not self._decisions and not self._hours:
                return None
            found = Records(decisions=tuple(self._decisions), hours=dict(self._hours))
            self._pending_decisions = len(self._decisions)
            self._decisions.clear()
            self._hours.clear()
        return found

    def _count(self, batch: Records) -> None:
        with self._lock:
            self._written += len(batch.decisions)
            self._pending_decisions = 0
            for hour_s, watched in batch.hours.items():
                left_s = self._unwritten_s[hour_s] - watched.replica_seconds
                if hour_s in self._hours:
                    self._unwritten_s[hour_s] = left_s
                else:
                    del self._unwritten_s[hour_s]


def _shape(row: DecisionRow) -> tuple[str, ...]:
    """What is said, without its numbers: they move at every look."""
    return tuple(_NUMBER.sub("0", text) for text in (row.reason, row.alert, row.finding))
