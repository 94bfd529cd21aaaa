"""`bul demo`: its report, and a run on each engine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bul.cli.conversations import conversations
from bul.cli.demo_report import Report, Restart, Turn, to_json
from bul.testing.nginx import free_port
from bul.testing.region_process import FREE_PORTS, bul_process

KEYS = {
    "identical",
    "conversations",
    "turns",
    "turns_shared_900",
    "ttft_cold_ms_p50",
    "ttft_warm_ms_p50",
    "prompt_tokens",
    "cached_tokens",
}


def turn(**changes: Any) -> Turn:
    plain = Turn(
        conversation="a",
        turn=2,
        prompt_tokens=1000,
        shared_tokens=950,
        cached_tokens=896,
        ttft_cold_ms=1000.0,
        ttft_warm_ms=100.0,
        identical=True,
    )
    return dataclasses.replace(plain, **changes)


def report(*turns: Turn) -> Report:
    return Report(engine="timed", model="m", conversations=1, turns=turns, seconds=1.0)


@pytest.mark.parametrize(("shared", "counted"), [(899, 0), (900, 1), (901, 1)])
def test_a_turn_counts_from_nine_hundred_shared_tokens(shared: int, counted: int) -> None:
    assert len(report(turn(shared_tokens=shared)).shared) == counted


def test_cold_and_warm_are_medians_over_the_same_turns() -> None:
    first = turn(shared_tokens=0, ttft_cold_ms=9e9, ttft_warm_ms=9e9)
    rest = [turn(ttft_cold_ms=cold, ttft_warm_ms=cold / 10) for cold in (100.0, 300.0, 200.0)]
    document = json.loads(to_json(report(first, *rest)))
    assert document["ttft_cold_ms_p50"] == 200.0
    assert document["ttft_warm_ms_p50"] == 20.0
    assert document["turns"] == 4
    assert document["turns_shared_900"] == 3


def test_one_different_text_makes_the_report_say_so() -> None:
    assert report(turn(), turn()).identical
    assert not report(turn(), turn(identical=False)).identical


def test_after_a_restart_the_headline_is_what_was_measured_after_it() -> None:
    again = turn(after_restart=True, ttft_cold_ms=800.0, ttft_warm_ms=80.0)
    restart = Restart(replicas_killed=2, back_s=1.5, disk_hit_tokens=896)
    both = dataclasses.replace(report(turn(), again), restart=restart)
    document = json.loads(to_json(both))
    assert (document["ttft_cold_ms_p50"], document["ttft_warm_ms_p50"]) == (800.0, 80.0)
    assert document["turns_shared_900"] == 1
    assert document["restart"]["warm_over_cold"] == 0.1
    assert document["before_restart"]["ttft_cold_ms_p50"] == 1000.0
    assert not dataclasses.replace(both, turns=(turn(identical=False), again)).identical


def test_without_shared_turns_there_is_no_figure() -> None:
    document = json.loads(to_json(report(turn(shared_tokens=0))))
    assert document["ttft_cold_ms_p50"] is None


def test_the_conversations_are_three_or_more_with_three_turns_or_more() -> None:
    assert len(conversations()) >= 3
    assert all(len(conversation.questions) >= 3 for conversation in conversations())


AT_ONCE = FREE_PORTS | {"BUL_TIMED_TIME_SCALE": "0"}
"""The timed engine does not wait: what it says is tested here, not how long it takes."""


async def demo(folder: Path, *flags: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    changes = AT_ONCE | (environ or {})
    async with bul_process(["demo", "--json", *flags], folder, changes) as process:
        code = await process.ended(280)
        assert code == 0, process.errors
        document: dict[str, Any]
        (document,) = process.events
    return document


async def test_the_demo_on_the_timed_engine_has_every_key(tmp_path: Path) -> None:
    document = await demo(tmp_path, "--engine", "timed")
    assert set(document) >= KEYS
    assert document["identical"] is True
    assert document["conversations"] == 3
    assert document["turns"] == 9
    assert document["turns_shared_900"] == 6


ALWAYS_LOAD = {"BUL_CACHE_BREAK_EVEN": "false"}
"""An engine that computes in no time never gains by loading."""


@pytest.mark.slow
async def test_after_a_restart_of_every_replica_kv_comes_from_disk(tmp_path: Path) -> None:
    document = await demo(tmp_path, "--restart", "--engine", "timed", environ=ALWAYS_LOAD)
    assert set(document) >= KEYS
    assert document["identical"] is True
    assert document["turns_shared_900"] == 3
    assert document["restart"]["replicas_killed"] == 2
    again = [row for row in document["rows"] if row["after_restart"]]
    assert all(row["cached_tokens"] >= 896 for row in again)
    assert document["restart"]["disk_hit_tokens"] == sum(row["cached_tokens"] for row in again)


async def test_a_restart_without_persistence_is_refused(tmp_path: Path) -> None:
    arguments = ["demo", "--restart", "--no-persistence", "--engine", "timed"]
    async with bul_process(arguments, tmp_path, AT_ONCE) as process:
        assert await process.ended() == 2
        assert "--no-persistence" in process.errors


@pytest.fixture(scope="module")
def real_demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One conversation on the real model, then a restart: a minute, for both tests below."""
    flags = ("--restart", "--conversations", "1", "--replicas", "1")
    return asyncio.run(demo(tmp_path_factory.mktemp("real"), *flags))


@pytest.mark.slow
@pytest.mark.steady
def test_the_demo_on_the_real_model_gives_the_same_text_from_the_cache(
    real_demo: dict[str, Any],
) -> None:
    rows = [row for row in real_demo["rows"] if not row["after_restart"]]
    assert len(rows) == 3
    assert all(row["identical"] for row in rows)
    assert real_demo["before_restart"]["turns_shared_900"] == 2
    assert all(row["cached_tokens"] >= 896 for row in rows[1:])
    assert all(row["ttft_warm_ms"] < row["ttft_cold_ms"] for row in rows[1:])


@pytest.mark.slow
@pytest.mark.steady
def test_after_a_restart_the_real_model_continues_from_disk_with_the_same_text(
    real_demo: dict[str, Any],
) -> None:
    assert real_demo["identical"] is True
    assert real_demo["turns_shared_900"] == 1
    assert real_demo["restart"]["disk_hit_tokens"] >= 896
    assert real_demo["ttft_warm_ms_p50"] < real_demo["ttft_cold_ms_p50"]


@pytest.mark.slow
async def test_a_cold_replica_gets_kv_from_the_shared_cache(tmp_path: Path) -> None:
    document = await demo(tmp_path, "--cold-replica", "--engine", "timed", environ=ALWAYS_LOAD)
    assert set(document) >= KEYS
    assert document["identical"] is True
    assert document["turns_shared_900"] == 3
    assert document["cold_replica"]["shared_hit_tokens"] >= 3 * 1152
    assert document["cold_replica"]["disk_hit_tokens"] == 0
    assert not list((tmp_path / ".bul").glob("cold-replica-*"))


@pytest.mark.slow
async def test_without_the_shared_cache_a_cold_replica_has_nothing(tmp_path: Path) -> None:
    """The control: an address where nobody answers."""
    changes = ALWAYS_LOAD | {"BUL_CACHE_SHARED_URL": f"redis://127.0.0.1:{free_port()}"}
    document = await demo(tmp_path, "--cold-replica", "--engine", "timed", environ=changes)
    assert document["identical"] is True
    assert document["cold_replica"]["shared_hit_tokens"] == 0
    assert [row["cached_tokens"] for row in document["rows"] if row["after_restart"]] == [0, 0, 0]


@pytest.mark.parametrize(
    "flags", [("--restart", "--cold-replica"), ("--at", "http://127.0.0.1:1")], ids=" ".join
)
async def test_flags_that_mean_nothing_together_are_refused(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    async with bul_process(["demo", *flags], tmp_path, AT_ONCE) as process:
        assert await process.ended() == 2


@pytest.mark.nightly
async def test_on_the_real_model_a_cold_replica_is_warm_through_valkey(tmp_path: Path) -> None:
    document = await demo(tmp_path, "--cold-replica", "--conversations", "1")
    assert document["identical"] is True
    assert document["cold_replica"]["warm_over_cold"] <= 0.25
