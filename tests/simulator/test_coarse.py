"""The coarse replay's line for slots, against one that goes from arrival to arrival."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from bul.simulator.arrivals import Floats
from bul.simulator.coarse import slot_waits


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
