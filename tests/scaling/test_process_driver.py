"""The process driver: the driver contract, and what only processes can do to it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from bul.scaling.drivers.child import ChildEvent, ChildPlan
from bul.scaling.drivers.process import ProcessDriver
from bul.scaling.drivers.restarts import RestartLimits
from bul.testing.driver_contract import DriverContract
from bul.testing.waiting import eventually, is_alive


def stub(*flags: str) -> list[str]:
    return [sys.executable, "-m", "bul.testing.stub_replica", *flags]


def plan_for(tmp_path: Path, *flags: str, kill_after_s: float = 10.0) -> ChildPlan:
    def command(port: int) -> Sequence[str]:
        return [*stub(*flags), "--port", str(port)]

    return ChildPlan(
        command=command,
        environ=dict(os.environ),
        log_dir=tmp_path / "logs",
        kill_after_s=kill_after_s,
        restarts=RestartLimits(wait_first_s=0.01, crashes_max=3, wait_crash_loop_s=60.0),
    )


class TestProcessDriver(DriverContract):
    @pytest.fixture
    async def driver(self, tmp_path: Path) -> AsyncIterator[ProcessDriver]:
        driver = ProcessDriver(plan_for(tmp_path))
        yield driver
        await driver.close()


async def all_ready(driver: ProcessDriver, replicas: int) -> bool:
    found = await driver.replicas()
    return [replica.state for replica in found] == ["ready"] * replicas


async def test_a_killed_replica_returns_on_its_port(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    driver = ProcessDriver(plan_for(tmp_path), notify=events.append)
    await driver.scale_to(2)
    await eventually("two are ready", lambda: all_ready(driver, 2))
    before, pids = await driver.replicas(), driver.pids
    os.kill(pids["replica-0"], signal.SIGKILL)
    await eventually("its death is noticed", lambda: any(e.kind == "exited" for e in events))
    await eventually("it is back", lambda: all_ready(driver, 2))
    assert await driver.replicas() == before
    assert driver.pids["replica-0"] != pids["replica-0"]
    assert driver.pids["replica-1"] == pids["replica-1"]
    await driver.close()


async def test_a_crash_loop_is_named_with_the_last_words(tmp_path: Path) -> None:
    driver = ProcessDriver(plan_for(tmp_path, "--die-after", "0.01"))
    await driver.scale_to(1)
    await eventually("it is given up on", lambda: bool(driver.failures))
    assert "crash loop, 3 lives" in driver.failures["replica-0"]
    assert "out of memory, or so" in driver.failures["replica-0"]
    await driver.close()


async def test_wrong_settings_are_reported_and_not_repeated(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    driver = ProcessDriver(plan_for(tmp_path, "--no-such-flag"), notify=events.append)
    await driver.scale_to(1)
    await eventually("it is given up on", lambda: bool(driver.failures))
    assert "unrecognized arguments: --no-such-flag" in driver.failures["replica-0"]
    assert [event.kind for event in events] == ["started", "exited"]
    await driver.close()


async def test_a_taken_port_is_said_and_another_one_is_used(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        driver = ProcessDriver(plan_for(tmp_path), port_first=port, notify=events.append)
        await driver.scale_to(1)
        await eventually("one is ready", lambda: all_ready(driver, 1))
        (replica,) = await driver.replicas()
        assert not replica.url.endswith(f":{port}")
        assert f"port {port} is taken" in events[0].text
        await driver.close()


async def test_a_replica_that_ignores_sigterm_is_killed_after_its_time(tmp_path: Path) -> None:
    driver = ProcessDriver(plan_for(tmp_path, "--ignore-sigterm", kill_after_s=0.2))
    await driver.scale_to(1)
    await eventually("one is ready", lambda: all_ready(driver, 1))
    pid = driver.pids["replica-0"]
    await driver.close()
    assert not is_alive(pid)


async def test_a_drained_replica_exits_by_itself(tmp_path: Path) -> None:
    driver = ProcessDriver(plan_for(tmp_path, kill_after_s=60.0))
    await driver.scale_to(1)
    await eventually("one is ready", lambda: all_ready(driver, 1))
    pid = driver.pids["replica-0"]
    await driver.close()
    assert not is_alive(pid)


PARENT = """
import asyncio, os, sys
from pathlib import Path
from bul.scaling.drivers.child import ChildPlan
from bul.scaling.drivers.process import ProcessDriver

async def main(folder):
    command = lambda port: [sys.executable, "-m", "bul.testing.stub_replica"]
    plan = ChildPlan(command=command, environ=dict(os.environ), log_dir=Path(folder))
    driver = ProcessDriver(plan, notify=lambda e: e.kind == "ready" and print(e.pid, flush=True))
    await driver.scale_to(1)
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


async def orphan_after_parent_died(command: list[str]) -> int:
    """Start a parent, kill it with SIGKILL once its child is ready; the child's pid."""
    import asyncio

    parent = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    await parent.wait()
    return pid


async def test_no_replica_survives_a_killed_parent(tmp_path: Path) -> None:
    pid = await orphan_after_parent_died([sys.executable, "-c", PARENT, str(tmp_path)])
    await eventually("the replica died with it", lambda: not is_alive(pid), deadline_s=5)


UNLEASHED = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "bul.testing.stub_replica"], stdout=-1)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


async def test_the_control_without_a_leash_leaves_an_orphan() -> None:
    pid = await orphan_after_parent_died([sys.executable, "-c", UNLEASHED])
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


async def test_a_driver_that_is_killed_at_once_leaves_nothing(tmp_path: Path) -> None:
    driver = ProcessDriver(plan_for(tmp_path, "--ignore-sigterm", kill_after_s=60.0))
    await driver.scale_to(2)
    await eventually("two are ready", lambda: all_ready(driver, 2))
    pids = list(driver.pids.values())
    driver.kill()
    await driver.close()
    assert not any(is_alive(pid) for pid in pids)
