"""Other regions on the live page."""

from __future__ import annotations

from bul.cli.region_peers import peer_rows

PEER = {"reachable": True, "rtt_ms": 80.2, "lag_p99_ms": 120.0, "backlog_keys": 3}


def test_a_region_out_of_reach_has_a_backlog_and_no_distance() -> None:
    away = PEER | {"reachable": False}
    rows = peer_rows(["eu", "us"], {"peers": {"eu": PEER, "us": away}})
    assert rows == [
        {"name": "eu", "state": "up", "rtt_ms": 80.2, "lag_ms": 120.0, "backlog": 3},
        {"name": "us", "state": "out of reach", "rtt_ms": None, "lag_ms": None, "backlog": 3},
    ]


def test_while_the_agent_is_silent_every_other_region_is_unknown() -> None:
    [row] = peer_rows(["eu"], None)
    assert (row["name"], row["state"], row["lag_ms"]) == ("eu", "unknown", None)
