"""Sums and the ledger: nothing counted twice, nothing forgotten, nothing that grows."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bul.accounts.keys import check_name, hash_key, make_key
from bul.accounts.ledger import Ledger
from bul.accounts.ring import KeyRing
from bul.accounts.usage import OTHERS, Spent, Sums, UsageKey
from bul.errors import ConfigError

ONE = Spent(requests=1, prompt_tokens=10, cached_tokens=4, output_tokens=2)


class Book:
    """A database that loses its answer, or fails, when it is told to."""

    def __init__(self) -> None:
        self.rows: dict[UsageKey, int] = {}
        self.marks: set[tuple[str, int]] = set()
        self.fails = ""

    def write(self, writer: str, number: int, sums: Mapping[UsageKey, Spent], now_s: float) -> bool:
        del now_s
        if self.fails == "before":
            raise OSError(self.fails)
        new = (writer, number) not in self.marks
        if new:
            self.marks.add((writer, number))
            for key, spent in sums.items():
                self.rows[key] = self.rows.get(key, 0) + spent.requests
        if self.fails == "after":
            raise OSError(self.fails)
        return new

    @property
    def requests(self) -> int:
        return sum(self.rows.values())


def test_an_hour_ends_where_the_next_begins() -> None:
    sums = Sums()
    sums.add(3599.9, "alice", "m", ONE)
    sums.add(3600.0, "alice", "m", ONE)
    assert {key[0]: spent.requests for key, spent in sums.take().items()} == {0: 1, 3600: 1}
    assert len(sums) == 0


def test_beyond_the_limit_entries_are_told_apart_no_more_but_not_dropped() -> None:
    sums = Sums(entries_max=2)
    for name in ("a", "b", "c", "d", "a"):
        sums.add(0.0, name, "m", ONE)
    taken = sums.take()
    assert {key[1]: spent.requests for key, spent in taken.items()} == {"a": 2, "b": 1, OTHERS: 2}


def test_a_lost_answer_is_not_counted_twice() -> None:
    book, ledger = Book(), Ledger()
    ledger.record(0.0, "alice", "m", ONE)
    book.fails = "after"
    with pytest.raises(OSError, match="after"):
        ledger.write(book.write, 0.0)
    ledger.record(0.0, "alice", "m", ONE)
    book.fails = ""
    assert ledger.write(book.write, 0.0) == 2
    assert book.requests == 2
    assert ledger.stats()["usage_unwritten"] == 0


def test_without_the_number_a_lost_answer_would_count_twice() -> None:
    """The control: the same book, which forgets the batches it has."""
    book, ledger = Book(), Ledger()
    ledger.record(0.0, "alice", "m", ONE)
    book.fails = "after"
    with pytest.raises(OSError, match="after"):
        ledger.write(book.write, 0.0)
    book.marks.clear()
    book.fails = ""
    ledger.write(book.write, 0.0)
    assert book.requests == 2


def test_what_could_not_be_written_is_said_and_stays() -> None:
    book, ledger = Book(), Ledger()
    book.fails = "before"
    for _ in range(3):
        ledger.record(0.0, "alice", "m", ONE)
        with pytest.raises(OSError, match="before"):
            ledger.write(book.write, 0.0)
    assert ledger.stats() == {
        "usage_recorded_total": 3,
        "usage_written_total": 0,
        "usage_unwritten": 3,
        "usage_write_failures_total": 3,
    }
    book.fails = ""
    assert ledger.write(book.write, 0.0) == 3


def test_revoking_the_last_key_closes_the_door() -> None:
    ring = KeyRing({}, has_database=True)
    assert ring, "until the database has spoken, everybody is turned away"
    ring.update({}, ever=False)
    assert not ring
    ring.update({"alice": "0"}, ever=True)
    assert dict(ring) == {"alice": "0"}
    ring.update({}, ever=True)
    assert ring
    assert len(ring) == 0


def test_a_key_of_the_settings_file_wins_and_stays() -> None:
    ring = KeyRing({"alice": "file"}, has_database=False)
    assert ring
    ring.update({"alice": "database", "bob": "database"}, ever=True)
    assert dict(ring) == {"alice": "file", "bob": "database"}


def test_keys_are_long_and_hashed_and_names_are_plain() -> None:
    assert make_key() != make_key()
    assert len(make_key()) > 40
    assert len(hash_key("x")) == 64
    assert check_name("alice-2") == "alice-2"
    for wrong in ("", "-x", "a b", "ä", "x" * 65):
        with pytest.raises(ConfigError):
            check_name(wrong)
