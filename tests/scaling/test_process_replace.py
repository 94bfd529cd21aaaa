"""Replacing a replica: the new one first, and what happens when something comes in between."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from bul.errors import DriverError
from bul.scaling.drivers.child import ChildEvent, ChildPlan
from bul.scaling.drivers.process import ProcessDriver
from bul.scaling.drivers.restarts import RestartLimits
from bul.testing.waiting import eventually


class Plan:
    """Starts stubs; `flags` may be changed between one start and the next."""

    def __init__(self, folder: Path) -> None:
        self.flags: Sequence[str] = ()
        self.events: list[ChildEvent] = []
        self.asked = asyncio.Event()
        """For a command: a process is about to be born."""
        self.plan = ChildPlan(
            command=self._command,
            environ=dict(os.environ),
            log_dir=folder / "logs",
            restarts=RestartLimits(wait_first_s=0.01, crashes_max=2, wait_crash_loop_s=60.0),
        )

    def _command(self, port: int) -> Sequence[str]:
        self.asked.set()
        return [sys.executable, "-m", "bul.testing.stub_replica", *self.flags, "--port", str(port)]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path)


@pytest.fixture
async def driver(plan: Plan) -> AsyncIterator[ProcessDriver]:
    driver = ProcessDriver(plan.plan, replicas_max=2, notify=plan.events.append)
    await driver.scale_to(2)
    await driver.until_settled()
    yield driver
    await driver.close()
    assert await driver.replicas() == []


async def names(driver: ProcessDriver) -> list[str]:
    return [replica.name for replica in await driver.replicas()]


async def test_the_new_one_is_admitted_before_the_old_one_drains(
    driver: ProcessDriver, plan: Plan
) -> None:
    def draining() -> list[str]:
        return [event.replica.name for event in plan.events if event.kind == "draining"]

    async def admitted(url: str) -> None:
        assert url in driver.ready_urls
        assert len(driver.ready_urls) == 3
        assert draining() == []

    new = await driver.replace("replica-0", admitted=admitted)
    assert new is not None
    assert new.name == "replica-2"
    assert draining() == ["replica-0"]
    assert await names(driver) == ["replica-1", "replica-2"]


async def test_one_that_cannot_live_leaves_the_old_one(driver: ProcessDriver, plan: Plan) -> None:
    plan.flags = ("--no-such-flag",)
    before = await driver.replicas()
    with pytest.raises(DriverError, match=r"replica-2 cannot start: .*unrecognized arguments"):
        await driver.replace("replica-0")
    await driver.until_settled()
    assert await driver.replicas() == before


async def test_a_name_that_is_not_there_is_refused(driver: ProcessDriver) -> None:
    with pytest.raises(DriverError, match="there is no replica replica-7"):
        await driver.replace("replica-7")
    assert await names(driver) == ["replica-0", "replica-1"]


async def test_a_cancelled_replacement_is_taken_back(driver: ProcessDriver, plan: Plan) -> None:
    plan.flags = ("--never-ready",)
    replacing = asyncio.create_task(driver.replace("replica-0"))
    await eventually("it has begun", lambda: len(driver.pids) == 3)
    replacing.cancel()
    await asyncio.gather(replacing, return_exceptions=True)
    await driver.until_settled()
    assert await names(driver) == ["replica-0", "replica-1"]


async def test_one_that_is_cancelled_while_its_process_starts_leaves_nothing(
    driver: ProcessDriver,
) -> None:
    replacing = asyncio.create_task(driver.replace("replica-0"))
    await asyncio.sleep(0)
    assert driver.pids["replica-2"] == 0
    replacing.cancel()
    await asyncio.gather(replacing, return_exceptions=True)
    assert await names(driver) == ["replica-0", "replica-1"]
    await asyncio.wait_for(driver.until_settled(), 20)


async def test_a_spare_does_not_count_when_the_driver_scales_meanwhile(
    driver: ProcessDriver,
) -> None:
    async def admitted(_: str) -> None:
        await driver.scale_to(2)
        assert len(driver.ready_urls) == 3

    assert await driver.replace("replica-1", admitted=admitted) is not None
    assert await names(driver) == ["replica-0", "replica-2"]


async def test_one_that_is_scaled_away_meanwhile_needs_no_replacement(
    driver: ProcessDriver,
) -> None:
    async def admitted(_: str) -> None:
        await driver.scale_to(1)

    assert await driver.replace("replica-1", admitted=admitted) is None
    await driver.until_settled()
    assert await names(driver) == ["replica-0"]


async def test_closing_the_driver_ends_a_replacement_that_has_just_begun(
    driver: ProcessDriver, plan: Plan
) -> None:
    """Its process may be gone before anybody waits for it to be ready; and it must be gone."""
    plan.flags = ("--never-ready",)
    plan.asked.clear()
    replacing = asyncio.create_task(driver.replace("replica-0"))
    await plan.asked.wait()
    await driver.close()
    with pytest.raises(DriverError, match="cannot start"):
        await replacing
    assert driver.pids == {}
    pids = [event.pid for event in plan.events if event.kind == "started"]
    assert len(pids) == 3
    with pytest.raises(ProcessLookupError):
        os.kill(pids[-1], 0)


async def test_closing_the_driver_ends_a_replacement(driver: ProcessDriver, plan: Plan) -> None:
    plan.flags = ("--never-ready",)
    replacing = asyncio.create_task(driver.replace("replica-0"))
    await eventually("it has begun", lambda: len(driver.pids) == 3)
    await driver.close()
    with pytest.raises(DriverError, match="cannot start"):
        await replacing
    with pytest.raises(DriverError, match="closed"):
        await driver.scale_to(1)
