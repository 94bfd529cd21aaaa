"""Drivers over units: a backend that hangs, loses its answer or half obeys leads to no double."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bul.errors import DriverError
from bul.scaling.drivers.fleet import Fleet, FleetLimits
from bul.scaling.loop import IntelligentAutoScaler
from bul.testing.clock import ManualClock
from bul.testing.scaling import FakeBackend, FakeSource
from bul.testing.waiting import eventually

LIMITS = FleetLimits(call_s=0.05, ready_s=0.2, notice_s=0.0, stop_s=0.05)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def fleet(backend: FakeBackend) -> AsyncIterator[Fleet]:
    fleet = Fleet(backend, LIMITS)
    yield fleet
    await fleet.close()


async def names(fleet: Fleet) -> list[str]:
    return [one.name for one in await fleet.replicas()]


async def test_a_start_that_comes_after_its_deadline_is_found_and_not_repeated(
    fleet: Fleet, backend: FakeBackend
) -> None:
    backend.late = 1
    with pytest.raises(DriverError, match=r"no answer within 0.05 s"):
        await fleet.scale_to(2)
    backend.release()
    await asyncio.sleep(0)
    await fleet.scale_to(2)
    assert backend.starts == [0, 1]
    assert await names(fleet) == ["unit-0", "unit-1"]


async def test_a_start_whose_answer_is_lost_is_found_and_not_repeated(
    fleet: Fleet, backend: FakeBackend
) -> None:
    backend.lost = 1
    with pytest.raises(DriverError, match="the answer was lost"):
        await fleet.scale_to(2)
    await fleet.scale_to(2)
    assert backend.starts == [0, 1]


async def test_a_scaler_over_it_ends_with_what_was_wanted_and_no_more(
    fleet: Fleet, backend: FakeBackend
) -> None:
    clock = ManualClock()
    source = FakeSource(clock)
    scaler = IntelligentAutoScaler(
        fleet, source, policy="fixed", settings={"replicas": 4}, clock=clock
    )
    backend.late, backend.lost = 1, 1
    findings = []
    for _ in range(4):
        clock.advance(15.0)
        await scaler.check_and_scale()
        findings.append(scaler.finding)
        backend.release()
        await asyncio.sleep(0)
    assert [bool(finding) for finding in findings] == [True, True, False, False]
    assert "no answer" in findings[0]
    assert "lost" in findings[1]
    assert len(backend.names) == 4
    assert len(backend.starts) == 4


async def test_one_that_cannot_be_stopped_is_failed_and_the_first_to_go_next_time(
    fleet: Fleet, backend: FakeBackend
) -> None:
    await fleet.scale_to(3)
    backend.stuck = 1
    await fleet.scale_to(2)

    async def says_so() -> bool:
        found = await fleet.replicas()
        return [one.state for one in found] == ["pending", "pending", "failed"]

    await eventually("it is failed", says_so)
    assert "cannot be stopped: the disk is read-only" in (await fleet.replicas())[2].failure
    await fleet.scale_to(2)
    await eventually("it is gone", lambda: sorted(backend.names) == ["unit-0", "unit-1"])


async def test_what_drains_is_not_counted_and_not_stopped_twice(
    fleet: Fleet, backend: FakeBackend
) -> None:
    await fleet.scale_to(3)
    await fleet.scale_to(1)
    await fleet.scale_to(1)
    assert len([one for one in await fleet.replicas() if one.state != "draining"]) == 1
    await eventually("two have gone", lambda: list(backend.names) == ["unit-0"])


async def test_a_replacement_that_is_never_ready_is_taken_back(
    fleet: Fleet, backend: FakeBackend
) -> None:
    await fleet.scale_to(1)
    with pytest.raises(DriverError, match=r"unit-1 was not ready within 0.2 s"):
        await fleet.replace("unit-0")
    await eventually("it is as before", lambda: list(backend.names) == ["unit-0"])


async def test_closing_says_what_could_not_be_stopped(backend: FakeBackend) -> None:
    fleet = Fleet(backend, LIMITS)
    await fleet.scale_to(1)
    backend.stuck = 1
    with pytest.raises(DriverError, match="unit-0 cannot be stopped"):
        await fleet.close()


async def test_killing_ends_all_at_once(fleet: Fleet, backend: FakeBackend) -> None:
    await fleet.scale_to(2)
    fleet.kill()
    await eventually("nothing is left", lambda: backend.names == {})
