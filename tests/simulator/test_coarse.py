"""The coarse replay's line for slots, and the oracle's look-ahead, against plain ways to count."""

from __future__ import annotations

import dataclasses
import heapq
from typing import Any

import numpy as np
import pytest

from bul.scaling.bounds import Bounds
from bul.scaling.rules import Fixed, RuleState
from bul.scaling.signals import Signals
from bul.simulator.arrivals import Arrivals, Floats
from bul.simulator.cluster import Region
from bul.simulator.coarse import CoarseRegion, slot_waits
from bul.simulator.oracle import Oracle, future_of
from bul.simulator.replica import PROFILES


def one_by_one(taken: Floats, slots: int, started: Floats, ends: Floats) -> list[float]:
    """Whoever comes while all slots are taken gets the one that is free first."""
    heap, waits = taken.tolist(), []
    heapq.heapify(heap)
    for start, end in zip(started.tolist(), ends.tolist(), strict=True):
        if len(heap) < slots:
            heapq.heappush(heap, end)
            waits.append(0.0)
            continue
        waits.append(max(heap[0] - start, 0.0))
        heapq.heapreplace(heap, end + waits[-1])
    return waits


def made(seed: int, slots: int, count: int) -> tuple[Floats, Floats, Floats]:
    """Slots taken at the tick's begin, starts and ends; replies from short to far beyond it."""
    rng = np.random.default_rng(seed)
    taken = np.sort(rng.uniform(0.0, 60.0, size=int(rng.integers(0, slots + 1))))
    started = np.sort(rng.uniform(0.0, 75.0, size=count))
    return taken, started, started + rng.exponential(rng.choice([2.0, 20.0, 200.0]), size=count)


def free_at(taken: Floats, slots: int, count: int) -> Floats:
    times = np.concatenate((np.full(slots - len(taken), -np.inf), taken, np.full(count, np.inf)))
    return times[:count]


@pytest.mark.parametrize("slots", [1, 3, 16, 60])
def test_waits_for_slots_are_those_of_a_line_served_one_by_one(slots: int) -> None:
    waited = 0
    for seed in range(50):
        taken, started, ends = made(seed, slots, 1 + 3 * seed)
        found = slot_waits(free_at(taken, slots, len(started)), started, ends)
        assert found.tolist() == one_by_one(taken, slots, started, ends), seed
        waited += int((found > 0.0).sum())
    assert waited > 0


def test_slots_left_within_the_tick_are_what_the_rounds_are_for() -> None:
    """The control: with the slots of the begin alone, those who come late never get one."""
    taken, started, ends = made(9, 3, 40)
    first = np.maximum(free_at(taken, 3, 40) - started, 0.0)
    assert first.tolist() != one_by_one(taken, 3, started, ends)


def drowning() -> Arrivals:
    """A quarter of an hour of some ten times what two replicas can do, and then almost none."""
    rng = np.random.default_rng(5)
    at_s = np.concatenate((rng.uniform(0.0, 900.0, 9_000), rng.uniform(900.0, 3_600.0, 300)))
    return Arrivals(
        at_s=np.sort(at_s),
        prompt_tokens=rng.integers(10, 200, len(at_s)),
        output_tokens=rng.integers(1, 800, len(at_s)),
    )


class Counted(CoarseRegion[RuleState]):
    """Counts the line over all bins at each tick, too."""

    longest = 0

    def _slot_waits(self, marks: Floats, started: Floats, ends: Floats) -> Floats:
        taken, count = marks.cumsum(), len(started)
        first = int(taken[-1]) - self._ready * self._profile.slots
        ranks = np.arange(first, first + count)
        free_at = np.searchsorted(taken, ranks, side="right").astype(np.float64) + 0.5
        free_at[ranks >= taken[-1]] = np.inf
        free_at[ranks < 0] = -np.inf
        waits = super()._slot_waits(marks, started, ends)
        assert waits.tolist() == slot_waits(free_at, started, ends).tolist()
        self.longest = max(self.longest, first)
        return waits


def test_a_line_of_hours_is_counted_in_blocks_to_the_same_last_bit() -> None:
    policy = Fixed(bounds=Bounds(min_replicas=2, max_replicas=2), replicas=2)
    region = Counted(PROFILES["70b"], policy, RuleState(), replicas=2, cold_start_s=30.0)
    region.run(drowning())
    assert region.longest > 2_000  # it drowned


@pytest.mark.parametrize("kind", [CoarseRegion, Region])
def test_the_context_of_equal_sequences_is_a_dearer_sequence(kind: type[Any]) -> None:
    """64 microseconds a token of 250 is 16 ms a sequence; half of it is another result."""
    rng, count = np.random.default_rng(7), 2_000
    arrivals = Arrivals(
        at_s=np.sort(rng.uniform(0.0, 600.0, count)),
        prompt_tokens=np.full(count, 200),
        output_tokens=np.full(count, 100),
    )

    def ttft_s(**changed: Any) -> Floats:
        profile = dataclasses.replace(PROFILES["8b"], slots=4, **changed)
        policy = Fixed(bounds=Bounds(min_replicas=4, max_replicas=4), replicas=4)
        region = kind(profile, policy, RuleState(), replicas=4, cold_start_s=30.0)
        return np.asarray(region.run(arrivals).ttft_s)

    dearer = ttft_s(decode_each_s=0.017)
    assert ttft_s(decode_context_s=64e-6) == pytest.approx(dearer)
    assert ttft_s(decode_context_s=32e-6).mean() < 0.9 * dearer.mean()


def test_the_oracle_looks_one_cold_start_ahead_and_sees_the_end() -> None:
    arrivals = drowning()
    future = future_of(arrivals, PROFILES["70b"], 15.0)
    oracle = Oracle(future=future, bounds=Bounds(min_replicas=1), margin=1.5, cold_start_s=100.0)
    ticks = len(future.mean)
    for tick in range(ticks + 2):
        signals = Signals(measured_at_s=15.0 * tick, replicas_ready=1)
        want, _ = oracle.desired(RuleState(), signals, 15.0 * tick)
        ahead = slice(tick, tick + 9)
        need = (0.9 * future.mean[ahead] + 1.5 * future.spread[ahead]).max(initial=0.0)
        assert want.replicas == max(int(np.ceil(need - 0.05)), 1), tick
    assert want.reason == "nothing arrives any more"
