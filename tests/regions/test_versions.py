"""Versions, graves, outboxes and the order of asking, at their boundaries."""

from __future__ import annotations

import pytest

from bul.cache.placement import PrefillRate
from bul.regions.catalogue import Catalogue, Entry
from bul.regions.encoding import Benefit
from bul.regions.order import Link, ask_order
from bul.regions.outbox import Outbox, Pace
from bul.regions.versions import Grave, Graves, HybridClock, version_wall_ms

KEY = b"k" * 32
WALL_MS = 1_800_000_000_000


def test_a_write_after_a_delete_that_was_seen_is_newer_however_late_its_wall_clock_is() -> None:
    early, late = HybridClock("early"), HybridClock("late")
    deleted = early.tick(WALL_MS + 60_000)
    late.see(deleted)
    assert late.tick(WALL_MS) > deleted


def test_versions_of_one_millisecond_grow_beyond_the_counter() -> None:
    clock = HybridClock("here")
    made = [clock.tick(WALL_MS) for _ in range(5000)]
    assert made == sorted(set(made))
    assert version_wall_ms(made[-1]) == WALL_MS + 1


def test_a_version_from_beyond_the_skew_is_not_believed() -> None:
    there, here = HybridClock("there"), HybridClock("here", skew_ms_max=1000)
    assert here.believes(there.tick(WALL_MS + 1000), WALL_MS)
    assert not here.believes(there.tick(WALL_MS + 1001), WALL_MS)


def test_a_grave_covers_what_is_as_old_as_itself_and_nothing_newer() -> None:
    graves = Graves()
    assert graves.dig(Grave("tenant", b"tenant-1", 100))
    assert not graves.dig(Grave("tenant", b"tenant-1", 100))
    assert graves.covering(KEY, b"tenant-1", b"") == 100
    assert graves.covering(KEY, b"tenant-2", b"") == 0


def test_what_a_forgotten_grave_covered_stays_below_the_floor() -> None:
    graves = Graves(graves_max=2)
    for version in (5, 6, 7):
        graves.dig(Grave("key", bytes([version]) * 32, version))
    assert [grave.version for grave in graves.forget(7)] == [5]
    assert graves.floor == 5
    assert not graves.dig(Grave("key", KEY, 5))
    assert graves.dig(Grave("key", KEY, 6))


def test_a_full_outbox_drops_the_oldest_and_says_so() -> None:
    outbox = Outbox(2)
    for number in range(3):
        outbox.add(bytes([number]) * 32, 10, float(number))
    assert outbox.overflowed
    assert [key[0] for key, _ in outbox.take(9, 1000).keys] == [1, 2]
    assert (len(outbox), outbox.bytes) == (0, 0)


def test_what_could_not_be_told_goes_back_to_the_front() -> None:
    outbox = Outbox(9)
    for number in range(3):
        outbox.add(bytes([number]) * 32, 10, float(number))
    batch = outbox.take(2, 1000)
    outbox.give_back(batch, [10, 10])
    assert [key[0] for key, _ in outbox.take(9, 1000).keys] == [0, 1, 2]


def test_a_batch_ends_at_its_bytes_but_is_never_empty() -> None:
    outbox = Outbox(9)
    for number in range(3):
        outbox.add(bytes([number]) * 32, 10, 0.0)
    assert len(outbox.take(9, 5).keys) == 1
    assert len(outbox.take(9, 20).keys) == 2


def test_a_pace_lets_one_second_go_at_once_and_then_holds_the_rate() -> None:
    pace = Pace(1000.0)
    assert pace.wait_s(1000, 50.0) == 0.0
    assert pace.wait_s(500, 50.0) == pytest.approx(0.5)
    assert Pace().wait_s(1 << 40, 0.0) == 0.0


def link(region: str, rtt_s: float) -> Link:
    found = Link(region)
    for _ in range(30):
        found.answered(rtt_s, 0.0)
    return found


def test_the_nearest_is_asked_first_and_the_next_after_a_suspicious_silence() -> None:
    near, far = link("near", 0.02), link("far", 0.08)
    first, second = ask_order([far, near], deadline_s=1.0)
    assert (first.region, first.start_s) == ("near", 0.0)
    assert second.region == "far"
    assert 0.02 < second.start_s < 0.04
    assert [ask.start_s for ask in ask_order([far, near], deadline_s=1.0, at_once=True)] == [0, 0]


def test_nobody_is_asked_who_cannot_answer_in_time_or_whose_breaker_is_open() -> None:
    near, far = link("near", 0.02), link("far", 0.08)
    assert [ask.region for ask in ask_order([near, far], deadline_s=0.05)] == ["near"]
    for _ in range(3):
        near.failed(0.0)
    assert [ask.region for ask in ask_order([near, far], deadline_s=1.0)] == ["far"]


def test_a_load_that_loses_against_computing_is_not_asked_for() -> None:
    prefill = PrefillRate()
    prefill.observe(20_000, 1.0)
    far = Link("far", prefill)
    far.answered(0.08, 0.0)
    far.break_even.observe(65_536, 0.086)
    assert ask_order([far], deadline_s=1.0, size_bytes=65_536, tokens=64) == ()
    slow = PrefillRate()
    slow.observe(100, 1.0)
    far = Link("far", slow)
    far.answered(0.08, 0.0)
    far.break_even.observe(65_536, 0.086)
    assert len(ask_order([far], deadline_s=1.0, size_bytes=65_536, tokens=64)) == 1


def test_compression_is_chosen_where_the_link_is_slower_than_it_saves() -> None:
    slow, fast = Benefit(), Benefit()
    for benefit, seconds in ((slow, 1.0), (fast, 0.001)):
        benefit.sent(1_000_000, seconds)
        benefit.packed("zstd", 65_536, 40_000, 0.0002)
        benefit.packed("lz4", 65_536, 65_000, 0.00005)
    assert (slow.choice, fast.choice, Benefit().choice) == ("zstd", "none", "none")


def test_a_full_catalogue_forgets_the_oldest_and_its_digests_follow() -> None:
    catalogue = Catalogue(entries_max=16)
    for version in range(1, 18):
        catalogue.set(Entry(key=bytes([version]) * 32, version=version))
    assert [entry.version for entry in catalogue.forget()] == [1, 2]
    fresh = Catalogue()
    for version in range(3, 18):
        fresh.set(Entry(key=bytes([version]) * 32, version=version))
    assert catalogue.digests(0) == fresh.digests(0) == fresh.digests(2)
    assert catalogue.digests(0) != fresh.digests(3)
