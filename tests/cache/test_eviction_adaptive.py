"""The adaptive policy: what it promises against LRU, its parts, and its limits."""

from __future__ import annotations

import functools
import gc
import pathlib
import random

import numpy as np
import pytest

from bul.cache.eviction.adaptive import Adaptive, _Block
from bul.cache.eviction.adaptive_ages import AGE_BINS, bins_of_ages, reuse_index
from bul.cache.eviction.adaptive_ghosts import Ghosts
from bul.cache.eviction.adaptive_guard import Guard
from bul.cache.eviction.adaptive_log import RECORDS_MAX, ReuseLog
from bul.cache.eviction.adaptive_model import ReuseModel
from bul.cache.eviction.adaptive_request import RequestMemory, touch_class
from bul.cache.eviction.contract import Access
from bul.cache.eviction.make import make_policy
from bul.cache.replay import capacity_blocks, make_replayed, replay
from bul.cache.replay_trace import Trace, TraceRequest, read_trace

pytestmark = pytest.mark.steady

DATA = pathlib.Path(__file__).parents[2] / "../shared/data"
TRACES = ("moon_conv", "moon_synth", "lmc_swe", "weka_a")


@functools.cache
def _points(name: str, share: str) -> float:
    """Points of token hit ratio above LRU."""
    trace = read_trace(DATA / f"{name}.jsonl.gz")
    capacity = capacity_blocks(share, trace.unique_blocks)
    ratios = [
        replay(trace, make_replayed(policy, capacity, trace)).token_hit_ratio
        for policy in ("adaptive", "lru")
    ]
    return 100.0 * (ratios[0] - ratios[1])


def _paths(seed: int, sessions: int, regular: float) -> Trace:
    """Sessions of one or many turns; a `regular` share of them comes back every 40 s."""
    rng, requests, fresh = random.Random(seed), [], iter(range(10**9))
    pending: list[tuple[float, tuple[int, ...], int]] = []
    for number in range(sessions):
        turns = 12 if rng.random() < regular else 1
        path = tuple(next(fresh) for _ in range(rng.randrange(4, 12)))
        for turn in range(turns):
            pending.append((number * 2.0 + turn * 40.0, path, 10 if turns > 1 else 1000))
            path = (*path, next(fresh))
    for at_s, path, output in sorted(pending):
        requests.append(
            TraceRequest(
                at_s=at_s,
                input_tokens=16 * len(path),
                output_tokens=output,
                path=path,
                session="",
            )
        )
    return Trace(name="made", block_tokens=16, requests=tuple(requests))


def test_sessions_that_come_back_are_kept_against_those_that_do_not() -> None:
    trace = _paths(seed=1, sessions=800, regular=0.1)
    hits = {
        name: replay(trace, make_replayed(name, 60, trace)).token_hit_ratio
        for name in ("lru", "adaptive", "belady")
    }
    assert hits["lru"] < 0.01  # each gap is longer than LRU's memory
    assert 0.1 < hits["adaptive"] <= hits["belady"]


@pytest.mark.parametrize("share", ["0.01", "0.05", "0.1"])
def test_a_small_trace_is_never_far_under_lru(share: str) -> None:
    assert _points("lmc_swe", share) >= -0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("share", ["0.01", "0.05", "0.1", "0.25"])
def test_no_trace_is_more_than_three_tenths_of_a_point_under_lru(name: str, share: str) -> None:
    assert _points(name, share) >= -0.3


@pytest.mark.slow
def test_the_mean_gain_at_five_percent_is_two_points() -> None:
    assert sum(_points(name, "0.05") for name in TRACES) / len(TRACES) >= 2.0


def test_the_shadow_hits_exactly_what_lru_hits() -> None:
    trace = read_trace(DATA / "moon_synth.jsonl.gz")
    policy, lru = Adaptive(500), make_policy("lru", 500)
    seen: list[tuple[int, int]] = []

    def note(hits: int, shadow_hits: int, asked: int) -> None:
        seen.append((hits, shadow_hits))

    policy._guard.judge = note  # type: ignore[method-assign]  # listens
    hits = []
    for request in trace.requests[:1200]:
        if request.path:
            hits.append(lru.match(request.path))
        access = Access(path=request.path, now_s=request.at_s)
        lru.access(access)
        policy.access(access)
    assert [shadow for _, shadow in seen] == hits


def test_the_guard_follows_lru_while_it_loses_and_tries_again_when_the_loss_has_faded() -> None:
    guard = Guard()
    for _ in range(200):
        guard.judge(hits=10, shadow_hits=10, asked=20)
    assert not guard.follow_lru
    for _ in range(60):
        guard.judge(hits=5, shadow_hits=10, asked=20)
    assert guard.follow_lru
    for _ in range(3000):
        guard.judge(hits=10, shadow_hits=10, asked=20)
    assert not guard.follow_lru


def test_while_the_guard_says_so_the_policy_evicts_as_lru() -> None:
    policy, lru = Adaptive(40), make_policy("lru", 40)
    policy._guard.judge = lambda hits, shadow_hits, asked: None  # type: ignore[method-assign]  # mute
    policy._guard.follow_lru = True
    trace = _paths(seed=2, sessions=150, regular=0.2)
    for request in trace.requests:
        access = Access(path=request.path, now_s=request.at_s)
        assert sorted(map(str, policy.access(access))) == sorted(map(str, lru.access(access)))


def test_an_index_is_hits_per_second_of_the_best_horizon() -> None:
    hazards = np.zeros((1, AGE_BINS))
    bin_of_minute = int(bins_of_ages(np.array([60.0]))[0])
    hazards[0, bin_of_minute] = 0.5
    index = reuse_index(hazards)[0]
    assert index[0] == pytest.approx(0.5 / 60.0, rel=0.25)
    assert index[bin_of_minute - 1] > 2 * index[0]  # the closer, the dearer
    assert index[bin_of_minute + 1] == 0.0  # it will not come any more


def test_ages_fall_into_half_octaves() -> None:
    ages = np.array([0.0, 0.3, 0.36, 1.0, 60.0, 1e12])
    assert bins_of_ages(ages).tolist() == [0, 0, 1, 4, 15, AGE_BINS - 1]


def test_a_request_that_reaches_the_last_two_blocks_continues_the_earlier_one() -> None:
    first = RequestMemory(1, 10.0, 5)
    first.follows(None, 0)
    for known, turn in ((3, 0), (4, 1), (5, 1)):
        later = RequestMemory(2, 40.0, 7)
        later.follows(first, known)
        assert later.turn == turn
        assert later.gap_s == (30.0 if turn else 0.0)


def test_touch_classes_change_at_their_borders() -> None:
    counts = (1, 2, 3, 4, 5, 16, 17, 1000)
    assert [touch_class(count) for count in counts] == [0, 1, 2, 2, 3, 3, 4, 4]


def test_the_log_forgets_its_oldest_record_and_stays_within_its_ring() -> None:
    log, request = ReuseLog(), RequestMemory(1, 0.0, 1)
    for key in range(RECORDS_MAX + 10):
        log.trace(key, request, 0, 0.0)
        if key % 1000 == 0:
            log.catch_up()
            request.records = ()
    log.catch_up()
    assert len(log) == RECORDS_MAX == len(log.tracers)
    assert 3 not in log.tracers  # forgotten
    log.touched(20, 1.0)
    log.catch_up()
    assert int(log.observe(2.0, slice(0, len(log))).reused.sum()) == 1


def test_the_model_learns_that_one_kind_returns_and_another_does_not() -> None:
    model = ReuseModel(seed=0)
    rng = random.Random(0)
    for number in range(1, 600):
        now_s = number * 1.0
        returns = number % 2 == 0
        request = RequestMemory(number, now_s, 40 if returns else 4, touches=1)
        model.log.trace(number, request, 0, now_s)
        if number > 20 and (number - 20) % 2 == 0:
            model.log.touched(number - 20, now_s + rng.random())
        model.arrived(request, now_s)
    likely, unlikely = (RequestMemory(0, 0.0, length, touches=1, residents=1) for length in (40, 4))
    for request in (likely, unlikely):
        model.arrived(request, 600.0)
    blocks = [_Block(0, None, last=request, count=1) for request in (likely, unlikely)]
    worths = model.worths(blocks, 605.0, [1.0])
    assert worths[0] > 5 * worths[1]


def test_what_is_remembered_of_absent_blocks_is_bounded() -> None:
    policy = Adaptive(30, ghosts_min=50, unfinished_max=20)
    for request in _paths(seed=3, sessions=300, regular=0.1).requests:
        policy.access(Access(path=request.path, now_s=request.at_s))
        assert len(policy._ghosts.by_key) <= 80
        assert len(policy._unfinished) <= 20
        assert len(policy._leaves) <= 30


def test_time_that_runs_backwards_is_taken_as_standing_still() -> None:
    policy = Adaptive(4)
    policy.access(Access(path=["a", "b"], now_s=100.0))
    policy.access(Access(path=["c"], now_s=1.0))
    assert policy._nodes["c"].last.at_s == 100.0  # type: ignore[attr-defined]  # Adaptive's own node


def test_a_request_that_comes_in_several_calls_is_remembered_as_one() -> None:
    path = list(range(10))
    whole, parts = Adaptive(50), Adaptive(50)
    for turn in range(3):
        now_s, now_path = turn * 60.0, path[: 6 + 2 * turn]
        whole.access(Access(path=now_path, now_s=now_s))
        for done in range(0, len(now_path), 2):
            parts.access(Access(path=now_path[: done + 2], now_s=now_s, touched=done))
        for policy in (whole, parts):
            policy.finish(now_path, 50)
    lasts = [policy._nodes[9].last for policy in (whole, parts)]  # type: ignore[attr-defined]  # Adaptive's own
    for field in ("number", "turn", "known", "length", "gap_s", "residents", "output_tokens"):
        assert getattr(lasts[0], field) == getattr(lasts[1], field), field
    assert lasts[0].turn == 2
    assert whole._shadow._blocks == parts._shadow._blocks == 10


def test_ghosts_leave_in_the_order_in_which_they_came() -> None:
    ghosts, request = Ghosts(), RequestMemory(1, 0.0, 1)
    for key in range(6):
        ghosts.add(key, request, key)
    assert [ghosts.take(key) for key in (0, 3, 5)] == [0, 3, 5]
    ghosts.add(3, request, 9)
    ghosts.trim(2)
    assert list(ghosts.by_key) == [4, 3]
    ghosts.trim(0)
    ghosts.add(7, request, 1)
    assert ghosts.take(7) == 1
    assert not gc.is_tracked(ghosts.by_key)
