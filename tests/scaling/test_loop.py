"""`IntelligentAutoScaler`: one leader, no double scale, a record of everything."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bul.errors import DriverError
from bul.scaling.decision import Direction
from bul.scaling.drivers.logfile import BoundedLog
from bul.scaling.history import History, Record
from bul.scaling.lease import FileLease
from bul.scaling.loop import IntelligentAutoScaler
from bul.testing.clock import ManualClock
from bul.testing.scaling import FakeDriver, FakeSource

BUSY = {"utilization": 0.9, "ttft_p95_ms": 700.0}
QUIET = {"utilization": 0.1, "ttft_p95_ms": 100.0}


class Bench:
    """A scaler with the guide's rule, a made clock, and fakes on both sides."""

    def __init__(self, replicas: int = 4, **options: Any) -> None:
        self.clock = ManualClock()
        self.driver = FakeDriver(replicas)
        self.source = FakeSource(self.clock, **BUSY)
        given: dict[str, Any] = {"policy": "guide", "act_deadline_s": 0.05} | options
        self.scaler = IntelligentAutoScaler(self.driver, self.source, clock=self.clock, **given)

    async def tick(self) -> Direction:
        self.clock.advance(15.0)
        return (await self.scaler.check_and_scale()).direction


async def test_the_guides_attributes_are_there_with_the_guides_values() -> None:
    scaler = Bench().scaler
    assert (scaler.min_replicas, scaler.max_replicas) == (2, 10)
    assert scaler.target_latency_p95 == 500
    assert (scaler.scale_up_threshold, scaler.scale_down_threshold) == (0.8, 0.3)


async def test_it_scales_up_and_down_through_the_driver() -> None:
    bench = Bench()
    assert await bench.tick() is Direction.UP
    assert bench.driver.wishes == [5]
    assert bench.scaler.current_replicas == 5
    bench.driver.become_ready()
    bench.source.values = QUIET
    assert await bench.tick() is Direction.DOWN
    assert bench.driver.wishes == [5, 4]


async def test_attributes_changed_while_it_runs_count_at_the_next_tick() -> None:
    bench = Bench()
    bench.scaler.max_replicas = 4
    assert await bench.tick() is Direction.HOLD
    bench.scaler.max_replicas = 5
    assert await bench.tick() is Direction.UP


@pytest.mark.parametrize("outage", ["silent", "broken"])
async def test_an_outage_of_the_metrics_holds(outage: str) -> None:
    bench = Bench()
    setattr(bench.source, outage, True)
    assert await bench.tick() is Direction.HOLD
    assert bench.driver.wishes == []
    assert "no data" in bench.scaler.history.records()[-1].decision.reason


async def test_a_failing_driver_is_a_finding_and_the_state_is_not_kept() -> None:
    cooldown = {"scale_up_cooldown": 300.0}
    bench = Bench(settings=cooldown)
    bench.driver.faults.append("fail")
    await bench.tick()
    assert "no room" in bench.scaler.finding
    assert not bench.scaler.history.records()[-1].acted
    # Had the state been kept, the cooldown would now hold it back.
    assert await bench.tick() is Direction.UP
    assert bench.driver.wishes == [5, 5]
    assert bench.scaler.finding == ""
    bench.driver.become_ready()
    assert await bench.tick() is Direction.HOLD


async def test_a_driver_that_did_it_and_then_failed_is_not_asked_to_do_it_twice() -> None:
    bench = Bench()
    bench.driver.faults.append("fail_after")
    await bench.tick()
    assert len(bench.driver.states) == 5
    bench.source.values = {"utilization": 0.5}
    await bench.tick()
    assert bench.driver.wishes == [5]


class Counting:
    """The guide's snippet: counts its own steps, before anybody has done them."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver, self.current_replicas = driver, len(driver.states)

    async def scale_up(self) -> None:
        self.current_replicas += 1
        with contextlib.suppress(DriverError):
            await self.driver.scale_to(self.current_replicas)


@pytest.mark.parametrize("fault", ["fail", "fail_after", "half"])
async def test_after_three_faults_one_more_replica_is_one_more_and_not_four(fault: Any) -> None:
    """Each tick asks for one more than there is; the control asks for one more than it asked."""
    bench, control = Bench(), Counting(FakeDriver(4))
    for driver in (bench.driver, control.driver):
        driver.faults.extend([fault] * 3)
    for _ in range(3):
        await bench.tick()
        bench.driver.become_ready()
        there = len(bench.driver.states)
        assert bench.driver.wishes[-1] <= there + 1
        await control.scale_up()
    assert control.driver.wishes == [5, 6, 7]
    if fault == "fail":
        assert bench.driver.wishes == [5, 5, 5]
        assert control.current_replicas == 7
        assert len(control.driver.states) == 4


async def test_a_driver_that_did_half_is_a_finding_and_the_rest_is_decided_anew() -> None:
    bench = Bench(policy="fixed", settings={"replicas": 8})
    bench.driver.faults.append("half")
    await bench.tick()
    assert bench.scaler.finding == "8 were asked for, 6 are there"
    bench.driver.become_ready()
    await bench.tick()
    assert bench.driver.wishes == [8, 8]
    assert len(bench.driver.states) == 8


async def test_nothing_new_is_asked_of_a_driver_that_hangs() -> None:
    bench = Bench()
    bench.driver.faults.append("hang")
    await bench.tick()
    assert "did not finish" in bench.scaler.finding
    for _ in range(3):
        assert await bench.tick() is Direction.HOLD
    assert bench.driver.wishes == [5]
    assert "has worked on the last wish for 45 s" in bench.scaler.finding
    bench.driver.release()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.source.values = {"utilization": 0.5}
    assert await bench.tick() is Direction.HOLD
    assert (bench.driver.wishes, len(bench.driver.states)) == ([5], 5)
    assert bench.scaler.finding == ""


async def test_a_driver_that_cannot_list_moves_nothing() -> None:
    bench = Bench()
    bench.driver.list_fails = True
    assert await bench.tick() is Direction.HOLD
    assert "the socket is gone" in bench.scaler.finding
    assert bench.driver.wishes == []


async def test_advisory_mode_says_what_it_would_do_and_does_nothing() -> None:
    bench = Bench(advisory=True)
    assert await bench.tick() is Direction.UP
    assert bench.driver.wishes == []
    record = bench.scaler.history.records()[-1]
    assert (record.advisory, record.acted, record.decision.replicas) == (True, False, 5)


async def test_by_hand_it_stays_within_its_limits() -> None:
    bench = Bench(replicas=9)
    assert (await bench.scaler.scale_up()).replicas == 10
    assert (await bench.scaler.scale_up()).direction is Direction.HOLD
    low = Bench(replicas=3)
    assert (await low.scaler.scale_down()).replicas == 2
    assert (await low.scaler.scale_down()).direction is Direction.HOLD
    assert low.driver.wishes == [2]


async def test_by_hand_to_a_number_the_limits_hold_too() -> None:
    bench = Bench()
    assert (await bench.scaler.scale_to(7)).direction is Direction.UP
    assert (await bench.scaler.scale_to(7)).reason == "by hand, and 7 are there"
    assert "outside 2..10" in (await bench.scaler.scale_to(11)).reason
    assert bench.driver.wishes == [7]


async def test_while_it_is_paused_nothing_is_scaled() -> None:
    bench = Bench()
    bench.scaler.paused = "a restart is under way"
    assert await bench.tick() is Direction.HOLD
    assert bench.scaler.history.records()[-1].decision.reason == "a restart is under way"
    bench.scaler.paused = ""
    assert await bench.tick() is Direction.UP


async def test_a_ready_replica_that_the_router_does_not_use_counts_as_pending() -> None:
    unused = {"http://127.0.0.1:3"}
    bench = Bench(routed=lambda url: url not in unused)
    bench.source.values = QUIET
    assert await bench.tick() is Direction.HOLD
    assert "1 still starting" in bench.scaler.history.records()[-1].decision.reason
    unused.clear()
    assert await bench.tick() is Direction.DOWN


async def test_replicas_that_cannot_live_are_a_finding() -> None:
    bench = Bench()
    bench.driver.states[2] = "failed"
    bench.source.values = {"utilization": 0.5}
    await bench.tick()
    assert bench.scaler.finding == "r2: cannot live"
    assert bench.scaler.current_replicas == 3


async def test_a_wish_that_fails_late_is_a_finding_and_its_state_is_not_kept() -> None:
    bench = Bench(settings={"scale_up_cooldown": 300.0})
    bench.driver.faults.append("hang_then_fail")
    await bench.tick()
    bench.driver.release()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await bench.tick() is Direction.UP
    assert bench.driver.wishes == [5, 5]


async def test_two_checks_at_once_do_not_scale_twice() -> None:
    bench = Bench()
    await asyncio.gather(bench.scaler.check_and_scale(), bench.scaler.scale_up())
    assert bench.driver.wishes == [5, 6]


async def test_two_loops_with_one_lease_never_both_act(tmp_path: Path) -> None:
    path = tmp_path / "scaler.lock"
    first, second = (Bench(lease=FileLease(path)) for _ in range(2))
    assert await first.tick() is Direction.UP
    assert await second.tick() is Direction.HOLD
    assert "another loop leads" in second.scaler.history.records()[-1].decision.reason
    await first.scaler.close()
    assert await second.tick() is Direction.UP
    await second.scaler.close()


def test_a_removed_lock_file_ends_the_lease_that_it_held(tmp_path: Path) -> None:
    path = tmp_path / "scaler.lock"
    first, second = FileLease(path), FileLease(path)
    assert first.held()
    assert not second.held()
    path.unlink()
    assert second.held()
    assert not first.held()
    second.release()
    assert first.held()
    first.release()


async def test_without_a_lease_two_loops_do_both_act() -> None:
    """The control."""
    first, second = Bench(), Bench()
    assert [await first.tick(), await second.tick()] == [Direction.UP, Direction.UP]


async def test_every_decision_is_written_down_with_its_signals(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    seen: list[Record] = []
    history = History(BoundedLog(path), records_max=2)
    bench = Bench(history=history, on_record=seen.append)
    for _ in range(3):
        await bench.tick()
        bench.driver.become_ready()
    await bench.scaler.close()
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert [line["replicas"] for line in lines] == [5, 6, 7]
    assert lines[0]["signals"]["utilization"] == 0.9
    assert lines[0]["acted"]
    assert lines[0]["replicas_before"] == 4
    assert "over a threshold" in lines[0]["reason"]
    assert len(history.records()) == 2
    assert len(seen) == 3


async def test_the_default_policy_runs_over_the_same_loop() -> None:
    bench = Bench(policy="adaptive", replicas=2)
    for _ in range(4):
        bench.source.values = {"in_flight": 60.0}
        await bench.tick()
        bench.driver.become_ready()
    assert len(bench.driver.states) > 6
