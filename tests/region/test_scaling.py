"""A region that scales itself: real processes under a ramp, and the fixed fleet that cannot."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bul.testing.region_process import BulProcess, bul_process, region_process
from bul.testing.request_load import RequestLoad
from bul.testing.waiting import eventually, is_alive

SLOW_ENGINE = {
    "BUL_TIMED_DECODE_TOKENS_PER_S": "25",
    "BUL_SERVE_SLOTS": "2",
    "BUL_SCALE_INTERVAL_S": "0.5",
    "BUL_SCALE_HOLD_S": "2",
    "BUL_SCALE_WORK_MEMORY_S": "2",
    "BUL_SCALE_VIOLATION_MAX": "0.2",
}
"""One replica does two requests a second; cooldowns are short, so that a test can wait for them."""
SCALED = ("--replicas", "1", "--max-replicas", "4", "--no-persistence")
FIXED = ("--replicas", "1", "--no-persistence")


async def bench(folder: Path, url: str, rate: float, duration_s: float) -> dict[str, Any]:
    """The one run of a `bul bench`."""
    flags = ["--rate", str(rate), "--duration", str(duration_s), "--prompt-tokens", "64"]
    command = ["bench", url, *flags, "--output-tokens", "25", "--cv", "0", "--json"]
    async with bul_process(command, folder) as process:
        assert await process.ended() == 0
        (run,) = process.events[0]["runs"] if process.events else ({},)
        found: dict[str, Any] = run
        return found


async def decisions(folder: Path, *flags: str) -> list[dict[str, Any]]:
    async with bul_process(["scale", "history", "--json", *flags], folder) as process:
        await process.ended()
        found: list[dict[str, Any]] = process.events[0]["decisions"]
        return found


async def url_when_warm(region: BulProcess) -> str:
    """After its opening prompt, which would be in the way of a load."""
    url = str((await region.wait_for("ready"))["url"])
    await region.wait_for("opening_answered")
    return url


@pytest.mark.slow
async def test_a_ramp_scales_up_and_down_without_a_lost_request(tmp_path: Path) -> None:
    async with region_process(tmp_path, *SCALED, environ=SLOW_ENGINE) as region:
        url = await url_when_warm(region)
        rise, plateau = await bench(tmp_path, url, 5, 5), await bench(tmp_path, url, 5, 4)
        await eventually("it came down", lambda: steps_of(region)[-1][1] <= 2, 30)
        await eventually("what left is gone", lambda: alive(region) <= 2)
        region.send(signal.SIGINT)
        assert await region.ended() == 0
    assert (rise["errors"], plateau["errors"]) == ({}, {})
    assert rise["ok"] + plateau["ok"] >= 43
    steps = steps_of(region)
    assert max(after for _, after in steps) >= 3
    told = await decisions(tmp_path)
    assert [(one["replicas_before"], one["replicas"]) for one in told] == steps
    assert all(one["acted"] and "work of" in one["reason"] and one["signals"] for one in told)
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    async with region_process(fixed, *FIXED, environ=SLOW_ENGINE) as region:
        control = await bench(fixed, await url_when_warm(region), 5, 3)
    # The control: one replica lets its users wait for what the scaled region holds.
    assert control["ttft_ms"]["p50"] > 4 * plateau["ttft_ms"]["p50"]


def steps_of(region: BulProcess) -> list[tuple[int, int]]:
    return [(one["replicas_before"], one["replicas"]) for one in region.said("scaling")] or [(1, 9)]


def alive(region: BulProcess) -> int:
    return sum(is_alive(pid) for pid in region.all_pids())


@pytest.mark.slow
async def test_advice_is_written_down_and_watched_and_nothing_is_done(tmp_path: Path) -> None:
    advise = (*SCALED, "--advise")
    async with region_process(tmp_path, *advise, environ=SLOW_ENGINE) as region:
        url = str((await region.wait_for("ready"))["url"])
        async with bul_process(["scale", "watch", "--json"], tmp_path) as watch:
            async with RequestLoad(url, clients=8, max_tokens=10) as load:
                await region.wait_for("scaling", 30)
                await eventually("it is watched", lambda: has_advice(watch))
            assert load.lost == []
        assert len(region.all_pids()) == 1
        async with bul_process(["scale", "to", "9"], tmp_path) as by_hand:
            assert await by_hand.ended() == 1
            assert "outside 1..4" in by_hand.errors
    told = await decisions(tmp_path)
    assert all(one["advisory"] and not one["acted"] for one in told)


def has_advice(watch: BulProcess) -> bool:
    return any(one.get("advisory") and one.get("direction") == "up" for one in watch.events)


@pytest.mark.slow
async def test_keys_without_the_operators_are_one_line(tmp_path: Path) -> None:
    key = "0" * 64
    (tmp_path / "bul.toml").write_text(f'[keys]\noperator = "{key}"\nother = "{key}"\n')
    async with region_process(tmp_path, *SCALED) as region:
        assert await region.ended() == 2
        assert "key_file" in region.errors
        assert region.errors.count("\n") == 1


async def test_no_history_is_said(tmp_path: Path) -> None:
    async with bul_process(["scale", "history", "--json"], tmp_path) as process:
        assert await process.ended() == 1
        assert process.events == [{"decisions": []}]
        assert "no decisions" in process.errors


async def test_lines_cut_short_by_a_crash_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".bul").mkdir()
    one = {
        "time_s": 1.0,
        "policy": "adaptive",
        "direction": "up",
        "replicas_before": 1,
        "replicas": 2,
        "reason": "r",
        "finding": "",
        "alert": "",
    }
    line = msgspec.json.encode(one)
    (tmp_path / ".bul" / "decisions.jsonl.1").write_bytes(line + b"\n")
    (tmp_path / ".bul" / "decisions.jsonl").write_bytes(line + b"\n" + line[:20])
    assert len(await decisions(tmp_path)) == 2
