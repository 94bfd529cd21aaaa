"""A region's book: replica time to the second, and the decisions that say something."""

from __future__ import annotations

import pytest

from bul.accounts.book import DecisionRow, Records, RegionBook
from bul.accounts.costs import costs_by_day, last_day
from bul.accounts.records import ReplicaHour
from bul.accounts.store import UsageDay
from bul.accounts.usage import Spent


def row(at_s: float, reason: str = "enough", **changes: object) -> DecisionRow:
    given = {
        "at_s": at_s,
        "policy": "adaptive",
        "direction": "hold",
        "replicas_before": 2,
        "replicas": 2,
        "reason": reason,
        "acted": False,
    }
    return DecisionRow(**(given | changes))  # type: ignore[arg-type]  # fields by name


class Database:
    """Takes batches, or fails before or after it took one."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, int], Records] = {}
        self.fails = ""

    def write(self, writer: str, number: int, records: Records, now_s: float) -> bool:
        del now_s
        if self.fails == "before":
            raise OSError(self.fails)
        new = (writer, number) not in self.taken
        self.taken.setdefault((writer, number), records)
        if self.fails == "after":
            raise OSError(self.fails)
        return new

    @property
    def decisions(self) -> list[DecisionRow]:
        return [one for batch in self.taken.values() for one in batch.decisions]

    @property
    def seconds(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for batch in self.taken.values():
            for hour_s, watched in batch.hours.items():
                found[hour_s] = found.get(hour_s, 0.0) + watched.replica_seconds
        return found


def written(book: RegionBook) -> Database:
    database = Database()
    book.write(database.write, 0.0)
    return database


def test_replica_time_is_the_area_under_the_count() -> None:
    book = RegionBook("here")
    for at_s, replicas in ((0, 0), (2, 2), (10, 2), (12, 4), (20, 4), (22, 0)):
        book.see(float(at_s), 7200.0 + at_s, replicas)
    assert written(book).seconds == {7200: 2 + 16 + 6 + 32 + 4}
    assert book.replicas == 0


def test_what_crosses_an_hour_is_split_there() -> None:
    book = RegionBook("here")
    book.see(0.0, 3599.0, 2)
    book.see(3602.0, 7201.0, 2)
    assert written(book).seconds == {0: 2.0, 3600: 7200.0, 7200: 2.0}
    book.see(3603.0, 7200.0, 2)  # the wall clock was set back; the time that passed was one second
    assert written(book).seconds == {3600: 2.0}


def test_a_lost_answer_is_not_counted_twice_and_a_failure_loses_nothing() -> None:
    book, database = RegionBook("here"), Database()
    book.see(0.0, 100.0, 1)
    for at_s, fails in ((10.0, "after"), (20.0, "before"), (30.0, "")):
        book.see(at_s, 100.0 + at_s, 1)
        book.decide(row(at_s, direction="up", acted=True))
        database.fails = fails
        if fails:
            with pytest.raises(OSError, match=fails):
                book.write(database.write, 0.0)
        else:
            book.write(database.write, 0.0)
    assert database.seconds == {0: 30.0}
    assert [one.at_s for one in database.decisions] == [10.0, 20.0, 30.0]
    stats = book.stats()
    assert stats["region_replica_seconds_unwritten"] == 0
    assert stats["region_write_failures_total"] == 2
    database.taken.clear()  # the control: one that forgets its batches has them twice
    book.see(40.0, 140.0, 1)
    database.fails = "after"
    with pytest.raises(OSError, match="after"):
        book.write(database.write, 0.0)
    forgotten = database.seconds[0]
    database.taken.clear()
    database.fails = ""
    book.write(database.write, 0.0)
    assert forgotten + database.seconds[0] == 20.0


def test_holds_are_kept_when_they_say_something_new_and_not_too_often() -> None:
    book = RegionBook("here")
    book.decide(row(0.0, "p95 is 340 ms"))
    book.decide(row(15.0, "p95 is 341.5 ms"))  # other numbers are nothing new
    book.decide(row(299.0, "cooling down"))  # new, but too soon
    book.decide(row(300.0, "cooling down"))
    book.decide(row(900.0, "cooling down"))
    assert [one.at_s for one in written(book).decisions] == [0.0, 300.0]


def test_changes_are_all_kept_and_an_alert_does_not_wait_for_a_hold() -> None:
    book = RegionBook("here")
    book.decide(row(0.0))
    for at_s in (1.0, 2.0):
        book.decide(row(at_s, direction="up", replicas=3, acted=True))
    book.decide(row(3.0, alert="no number of replicas helps"))
    book.decide(row(4.0, alert="no number of replicas helps"))
    book.decide(row(5.0, direction="up", replicas=3, finding="the driver failed"))
    book.decide(row(303.0, direction="up", replicas=3, finding="the driver failed"))
    assert [one.at_s for one in written(book).decisions] == [0.0, 1.0, 2.0, 3.0, 303.0]


def test_what_waits_is_bounded_and_what_is_dropped_is_counted() -> None:
    book = RegionBook("here", decisions_max=2, hours_max=2)
    for at_s in (1.0, 2.0, 3.0):
        book.decide(row(at_s, "x" * 600, direction="up", acted=True))
    for hour in range(5):
        book.see(3600.0 * hour, 3600.0 * hour, 1)
    assert book.stats()["region_decisions_dropped_total"] == 1
    database = written(book)
    assert [(one.at_s, len(one.reason)) for one in database.decisions] == [(2.0, 500), (3.0, 500)]
    assert database.seconds == {0: 3600.0, 3600: 3 * 3600.0}


def test_today_is_what_the_database_has_and_what_waits_for_it() -> None:
    book = RegionBook("here")
    day_s = 10 * 86_400
    book.see(0.0, day_s - 10.0, 1)
    book.see(30.0, day_s + 20.0, 1)
    assert book.day_replica_seconds(day_s + 20.0) == 20.0
    written(book)
    assert book.day_replica_seconds(day_s + 20.0) == 0.0
    book.know_day(day_s, 120.0)
    book.see(40.0, day_s + 30.0, 1)
    assert book.day_replica_seconds(day_s + 30.0) == 130.0
    assert book.day_replica_seconds(day_s + 86_400.0) == 0.0


def hour(number: int, replicas: float, region: str = "here", share: float = 1.0) -> ReplicaHour:
    return ReplicaHour(
        hour_s=3600 * number,
        region=region,
        replica_seconds=3600 * share * replicas,
        seconds=3600 * share,
    )


def test_a_days_cost_is_its_replica_hours_and_tokens_are_held_against_it() -> None:
    used = Spent(requests=5, prompt_tokens=900_000, cached_tokens=600_000, output_tokens=100_000)
    hours = [hour(0, 2), hour(23, 3), hour(24, 4), hour(24, 1, "there")]
    rows = costs_by_day(hours, [UsageDay(day_s=0, region="here", spent=used)], 2.0)
    assert [(r.day_s, r.region, r.replica_hours, r.cost) for r in rows] == [
        (0, "here", 5.0, 10.0),
        (86_400, "here", 4.0, 8.0),
        (86_400, "there", 1.0, 2.0),
    ]
    assert rows[0].cost_per_million_tokens == 10.0
    assert rows[0].computed_tokens == 300_000
    assert rows[1].cost_per_million_tokens is None
    assert [r.cost for r in costs_by_day(hours, [], None)] == [None, None, None]


def test_the_last_day_is_scaled_by_what_was_counted() -> None:
    # Two replicas since 10 minutes before two o'clock; it is half past two.
    found = last_day([hour(1, 2, share=1 / 6), hour(2, 2, share=0.5)], 2.5 * 3600)
    assert found is not None
    assert found.span_s == pytest.approx(40 * 60)
    assert found.per_day == pytest.approx(48.0)
    # Long before: the present hour and the 23 before it.
    full = [hour(n, 1) for n in range(50)] + [hour(50, 1, share=0.5)]
    found = last_day(full, 50.5 * 3600)
    assert found is not None
    assert found.span_s == 23.5 * 3600
    assert found.per_day == pytest.approx(24.0)


def test_too_little_or_too_old_is_no_day() -> None:
    assert last_day([], 0.0) is None
    assert last_day([hour(0, 2, share=599 / 3600)], 600.0) is None
    assert last_day([hour(0, 2, share=600 / 3600)], 600.0) is not None
    assert last_day([hour(0, 2)], 1.99 * 3600) is not None
    assert last_day([hour(0, 2)], 2 * 3600.0) is None
