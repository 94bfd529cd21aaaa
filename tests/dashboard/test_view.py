"""What the page's document says of a region."""

from __future__ import annotations

from bul.dashboard.collect import content_policy, index_page
from bul.dashboard.page import HISTORY_MAX, ReplicaView, View, merge, tiers_of

DISK = {"hit_tokens_total": 50.0, "bytes": 4096.0, "bytes_max": 8192.0, "blocks": 7.0}


def replica(url: str, **changes: object) -> ReplicaView:
    given = {
        "url": url,
        "state": "ready",
        "in_flight": 1,
        "requests": 10,
        "signals": {"requests_per_second": 3.0, "p95_latency": 80.0, "cache_hit_rate": 0.9},
        "parts": {
            "engine": {"asked_tokens_total": 100.0},
            "values": {},
            "ram": {"hit_tokens_total": 20.0, "bytes": 1024.0, "blocks": 2.0},
            "disk": DISK,
        },
    }
    return ReplicaView(**(given | changes))  # type: ignore[arg-type]  # fields by name


def test_rates_add_up_shares_are_weighted_and_the_slowest_p95_counts() -> None:
    merged = merge(
        [
            {"requests_per_second": 9.0, "cache_hit_rate": 1.0, "p95_latency": 10.0},
            {"requests_per_second": 1.0, "cache_hit_rate": 0.0, "p95_latency": 90.0},
        ]
    )
    assert merged["requests_per_second"] == 10.0
    assert merged["cache_hit_rate"] == 0.9
    assert merged["p95_latency"] == 90.0


def test_no_data_is_none_and_never_zero() -> None:
    assert set(merge([]).values()) == {None}
    assert merge([{"requests_per_second": None, "cpu_utilization": 0.5}]) == {
        **dict.fromkeys(merge([])),
        "cpu_utilization": 0.5,
    }


def test_a_replica_that_shows_nothing_is_a_row_without_figures() -> None:
    view = View(name="here")
    view.add(1.0, [replica("a"), replica("b", signals=None, parts=None, state="down")])
    document = view.document()
    assert document["replicas_over_time"] == [1]
    rows = document["replicas"]
    assert isinstance(rows, list)
    assert [(row["url"], row["p95_latency"]) for row in rows] == [("a", 80.0), ("b", None)]


def test_a_folder_that_replicas_share_is_counted_once_and_ram_is_added_up() -> None:
    rows = {row["name"]: row for row in tiers_of([replica("a"), replica("b")])}
    assert list(rows) == ["ram", "disk"]
    assert rows["ram"]["bytes"] == 2048.0
    assert rows["disk"]["bytes"] == 4096.0
    assert rows["disk"]["hit_share"] == 0.5
    assert rows["ram"]["hit_share"] == 0.2


def test_an_open_breaker_of_one_replica_shows() -> None:
    parts = {"disk": {**DISK, "read_breaker_open": 1.0}}
    rows = tiers_of([replica("a"), replica("b", parts=parts)])
    assert [row["shut_off"] for row in rows if row["name"] == "disk"] == [1.0]


def test_history_is_bounded() -> None:
    view = View(name="here")
    for at_s in range(HISTORY_MAX + 5):
        view.add(float(at_s), [])
    times = view.document()["times_s"]
    assert isinstance(times, list)
    assert (len(times), times[0]) == (HISTORY_MAX, 5.0)


def test_only_changes_are_listed_and_the_last_decision_is_named() -> None:
    view = View(name="here", price_per_replica_hour=2.5)
    view.add(1.0, [replica("a"), replica("b")])
    up, hold = {"direction": "up", "text": "up"}, {"direction": "hold", "text": "hold"}
    document = view.document(decisions=[up, hold])
    assert document["decisions"] == [up]
    assert document["last_decision"] == hold
    assert document["cost_per_hour"] == 5.0


def test_cost_is_of_what_is_paid_for_and_hidden_without_a_price() -> None:
    view = View(name="here", price_per_replica_hour=2.0)
    view.add(1.0, [replica("a"), replica("b", state="down")])
    assert (view.document()["cost_per_hour"], view.document()["cost_today"]) == (4.0, None)
    document = view.document(hours=(3, 5400.0))
    assert (document["cost_per_hour"], document["cost_today"]) == (6.0, 3.0)
    free = View(name="here").document(hours=(3, 5400.0))
    assert (free["cost_per_hour"], free["cost_today"]) == (None, None)
    assert free["replica_hours_today"] == 1.5


def test_the_page_loads_nothing_and_may_run_just_its_own_script() -> None:
    page = index_page()
    assert b"src=" not in page
    assert b"http://www.w3.org" in page
    assert page.count(b"http") == page.count(b"http://www.w3.org") + page.count(b'"http://"')
    assert content_policy(page) != content_policy(page.replace(b"use strict", b"use sloppy"))
