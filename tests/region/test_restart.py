"""`bul restart` on a real region under load, its control socket, and the control that loses."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bul.testing.region_process import BulProcess, bul_process, region_process
from bul.testing.request_load import RequestLoad
from bul.testing.waiting import eventually, is_alive

pytestmark = [pytest.mark.slow, pytest.mark.steady]

FAST = {"BUL_TIMED_DECODE_TOKENS_PER_S": "100"}


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[BulProcess]:
    async with region_process(tmp_path, "--replicas", "2", environ=FAST) as running:
        await running.wait_for("ready")
        yield running


async def ask(folder: Path, request: bytes) -> list[dict[str, Any]]:
    """All lines that the control socket answers."""
    reader, writer = await asyncio.open_unix_connection(str(folder / ".bul" / "control.sock"))
    writer.write(request)
    lines = [msgspec.json.decode(line, type=dict[str, Any]) async for line in reader]
    writer.close()
    return lines


async def status(folder: Path) -> dict[str, Any]:
    (line,) = await ask(folder, b'{"command":"status"}\n')
    result: dict[str, Any] = line["result"]
    return result


def url_of(region: BulProcess) -> str:
    return str(region.said("ready")[0]["url"])


async def is_back(region: BulProcess, name: str, ready_before: int) -> None:
    await eventually(f"{name} is back", lambda: len(region.said("replica_ready")) > ready_before)


async def restart(folder: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the --json document and stderr of `bul restart`."""
    async with bul_process(["restart", "--json", *flags], folder) as command:
        code = await command.ended()
        return code, command.events[0] if command.events else {}, command.errors


async def test_a_rolling_restart_under_load_loses_nothing(
    region: BulProcess, tmp_path: Path
) -> None:
    old = region.all_pids()
    async with RequestLoad(url_of(region), clients=6, max_tokens=16, stream_every=2) as load:
        await load.more(30)
        code, document, _ = await restart(tmp_path)
        await load.more(30)
    assert code == 0
    assert len(document["replaced"]) == 2
    assert load.lost == []
    assert load.streams > 30
    assert not any(is_alive(pid) for pid in old)


@pytest.mark.parametrize(("resumed", "breaks"), [("false", True), ("true", False)])
async def test_kills_without_a_drain_break_streams_unless_they_are_resumed(
    resumed: str, breaks: bool, tmp_path: Path
) -> None:
    environ = {**FAST, "BUL_ROUTE_RESUME_STREAMS": resumed}
    async with region_process(tmp_path, "--replicas", "2", environ=environ) as region:
        await region.wait_for("ready")
        async with RequestLoad(url_of(region), clients=6, max_tokens=16, stream_every=2) as load:
            await load.more(30)
            for name, pid in list(region.replica_pids().items()):
                ready = len(region.said("replica_ready"))
                os.kill(pid, signal.SIGKILL)
                await is_back(region, name, ready)
            await load.more(30)
        assert any("stream" in line for line in load.lost) is breaks


async def test_scaling_in_under_load_lets_answers_finish(
    region: BulProcess, tmp_path: Path
) -> None:
    leaving = region.replica_pids()["replica-1"]
    async with RequestLoad(url_of(region), clients=6, max_tokens=16, stream_every=2) as load:
        await load.more(30)
        lines = await ask(tmp_path, b'{"command":"scale","replicas":1}\n')
        assert not is_alive(leaving)
        await load.more(30)
        lines += await ask(tmp_path, b'{"command":"scale","replicas":2}\n')
        await load.more(30)
    assert [line["result"]["replicas"] for line in lines if line["event"] == "done"] == [1, 2]
    assert load.lost == []
    assert len((await status(tmp_path))["replicas"]) == 2


async def test_five_kills_cost_no_whole_request(tmp_path: Path) -> None:
    async with region_process(tmp_path, "--replicas", "3", environ=FAST) as region:
        await region.wait_for("ready")
        async with RequestLoad(url_of(region), clients=6, pause_s=0.005) as load:
            await load.more(100)
            for kill in range(5):
                pids = region.replica_pids()
                before = len(region.said("replica_ready"))
                os.kill(pids[f"replica-{kill % 3}"], signal.SIGKILL)
                await load.more(200)
                await is_back(region, f"replica-{kill % 3}", before)
            await load.more(max(0, 1500 - load.requests))
    assert load.lost == []
    assert load.requests >= 1500


async def test_a_restart_replaces_every_replica_and_says_each_step(
    region: BulProcess, tmp_path: Path
) -> None:
    before = await status(tmp_path)
    code, document, progress = await restart(tmp_path)
    after = await status(tmp_path)
    assert code == 0
    assert [step["old"] for step in document["replaced"]] == ["replica-0", "replica-1"]
    assert "replica-0: starting its replacement (1 of 2)" in progress
    assert len(after["replicas"]) == 2
    assert all(replica["routed"] for replica in after["replicas"])
    pids = [{replica["pid"] for replica in found["replicas"]} for found in (before, after)]
    assert pids[0].isdisjoint(pids[1])
    assert after["url"] == before["url"]


async def test_a_restart_that_is_interrupted_leaves_as_many_replicas_as_there_were(
    region: BulProcess, tmp_path: Path
) -> None:
    async with bul_process(["restart"], tmp_path) as command:
        await eventually("a third one starts", lambda: len(region.said("replica_started")) == 3)
        command.send(signal.SIGINT)
        assert await command.ended() == 130
    await eventually("the third one is gone", lambda: bool(region.said("replica_stopped")))
    found = await status(tmp_path)
    assert [replica["name"] for replica in found["replicas"]] == ["replica-0", "replica-1"]
    assert all(replica["routed"] for replica in found["replicas"])
    assert found["under_way"] is None


async def test_scale_to_grows_and_shrinks_a_region(region: BulProcess, tmp_path: Path) -> None:
    assert region.said("ready")
    for replicas in (3, 1):
        async with bul_process(["scale", "to", str(replicas), "--json"], tmp_path) as command:
            assert await command.ended() == 0
        assert command.events[0]["replicas"] == replicas
        states = [found["state"] for found in (await status(tmp_path))["replicas"]]
        assert states == ["ready"] * replicas


async def test_two_restarts_at_a_time_are_refused(region: BulProcess, tmp_path: Path) -> None:
    first = asyncio.create_task(restart(tmp_path))
    await eventually("it has begun", lambda: len(region.said("replica_started")) == 3)
    code, _, errors = await restart(tmp_path)
    assert code == 1
    assert "a restart is under way" in errors
    assert (await first)[0] == 0


async def test_a_region_that_stops_ends_a_restart_with_a_sentence(
    region: BulProcess, tmp_path: Path
) -> None:
    running = asyncio.create_task(restart(tmp_path))
    await eventually("it has begun", lambda: len(region.said("replica_started")) == 3)
    region.send(signal.SIGTERM)
    code, _, errors = await running
    assert code == 1
    assert "ended meanwhile" in errors
    assert await region.ended() == 0
    assert not any(is_alive(pid) for pid in region.all_pids())


async def test_without_a_region_it_says_so_in_one_line(tmp_path: Path) -> None:
    code, _, errors = await restart(tmp_path)
    assert code == 1
    assert f"no region runs in {tmp_path}/.bul" in errors
    assert errors.count("\n") == 1


async def test_what_a_killed_region_left_is_no_region(tmp_path: Path) -> None:
    async with region_process(tmp_path) as region:
        await region.wait_for("router_listening")
        region.send(signal.SIGKILL)
        await region.ended()
    assert (tmp_path / ".bul" / "control.sock").exists()
    assert (await restart(tmp_path))[0] == 1
    async with region_process(tmp_path) as region:
        await region.wait_for("ready")
        assert len((await status(tmp_path))["replicas"]) == 2


async def test_bad_requests_get_an_error_and_change_nothing(
    region: BulProcess, tmp_path: Path
) -> None:
    assert stat.S_IMODE((tmp_path / ".bul" / "control.sock").stat().st_mode) == 0o600
    for request in (
        b'{"command":"scale"}\n',
        b'{"command":"scale","replicas":true}\n',
        b'{"command":"scale","replicas":0}\n',
        b'{"command":"scale","replicas":1e99}\n',
        b'{"command":"scale","replicas":11}\n',
    ):
        lines = await ask(tmp_path, request)
        assert lines[-1]["event"] == "error", request
    found = await status(tmp_path)
    assert len(found["replicas"]) == 2
    assert found["under_way"] is None
    assert region.said("replica_draining") == []
