"""`bul up --shared` and `--shared-url`: whose Valkey it is, and what happens when it goes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from bul.cli.shared_server import SOCKET_PATH_MAX
from bul.testing.nginx import free_port
from bul.testing.region_process import FREE_PORTS, BulProcess, bul_process, region_process
from bul.testing.valkey import running_valkey
from bul.testing.waiting import eventually, is_alive

FLAGS = ("--replicas", "1", "--no-persistence")


async def shared_stats(running: BulProcess) -> dict[str, Any]:
    url = (await running.wait_for("replica_ready"))["url"]
    async with httpx.AsyncClient(trust_env=False) as client:
        parts = json.loads((await client.get(f"{url}/cache/stats")).content)["parts"]
    figures: dict[str, Any] = parts.get("shared", {})
    return figures


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().strip("\0").replace("\0", " ")


def sockets(folder: Path) -> list[Path]:
    return list(folder.rglob("*.sock"))


async def has_stored(running: BulProcess) -> bool:
    return bool((await shared_stats(running)).get("set_blocks_total", 0) >= 18)


@pytest.mark.slow
async def test_a_region_runs_a_valkey_of_its_own_and_takes_it_along(tmp_path: Path) -> None:
    async with region_process(tmp_path, "--shared", *FLAGS) as running:
        server = (await running.wait_for("shared_started"))["pid"]
        await running.wait_for("opening_answered")
        await eventually("the prompt's blocks are stored", lambda: has_stored(running))
        assert (await shared_stats(running))["bytes_max"] == 1 << 30
        assert ">" not in command_line(server), "no password in ps: it came by stdin"
        os.kill(server, signal.SIGKILL)
        await running.wait_for("shared_died")
        await eventually("it is there again", lambda: _back(running))
        running.send(signal.SIGTERM)
        assert await running.ended() == 0
    assert not is_alive(server)
    assert sockets(tmp_path) == []


async def _back(running: BulProcess) -> bool:
    figures = await shared_stats(running)
    return figures.get("blocks") == 0 and not figures["read_breaker_open"]


@pytest.mark.slow
async def test_a_killed_region_leaves_no_server_behind(tmp_path: Path) -> None:
    # So deep a folder that its socket's path is too long for the kernel.
    deep = tmp_path / ("d" * SOCKET_PATH_MAX)
    deep.mkdir()
    async with region_process(deep, "--shared", *FLAGS) as running:
        server = (await running.wait_for("shared_started"))["pid"]
        running.send(signal.SIGKILL)
        await running.ended()
        await eventually("the server is gone", lambda: not is_alive(server))


@pytest.mark.slow
async def test_somebody_elses_server_is_used_and_stays(tmp_path: Path) -> None:
    with running_valkey(tmp_path / "valkey") as server:
        environ = {"BUL_CACHE_SHARED_URL": server.url}
        async with region_process(tmp_path, *FLAGS, environ=environ) as running:
            ready = await running.wait_for("shared_ready")
            assert str(server.port) in ready["text"]
            assert "secret" not in ready["text"]
            await running.wait_for("opening_answered")
            await eventually("the prompt's blocks are stored", lambda: has_stored(running))
        assert server.ask("DBSIZE") >= 18


@pytest.mark.slow
async def test_a_server_that_is_away_is_said_and_no_reason_not_to_start(tmp_path: Path) -> None:
    flags = (*FLAGS, "--shared-url", f"redis://127.0.0.1:{free_port()}")
    async with region_process(tmp_path, *flags) as running:
        await running.wait_for("shared_unavailable")
        await running.wait_for("opening_answered")


async def test_two_shared_caches_are_refused(tmp_path: Path) -> None:
    flags = ("--engine", "timed", "--shared", "--shared-url", "redis://127.0.0.1:1")
    async with bul_process(["up", *flags], tmp_path, FREE_PORTS) as process:
        assert await process.ended() == 2
    assert "both set" in process.errors
