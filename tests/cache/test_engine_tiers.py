"""The engine with slower tiers: loads, promotion, write-through, faults with their controls."""

from __future__ import annotations

import threading

import pytest

from bul.errors import TierUnavailable
from bul.testing.clock import ManualClock
from bul.testing.engines import (
    BLOCK_TOKENS,
    WAIT_S,
    MakeEngine,
    cached,
    chain,
    filled,
    payloads,
    settled,
    store,
)
from bul.testing.tiers import Fault, FaultyTier, MemoryTier


def gets(tier: MemoryTier) -> list[int]:
    return [keys for method, keys in tier.calls if method == "get"]


def test_a_new_engine_is_warm_from_its_first_request(make: MakeEngine) -> None:
    tier = filled(chain(10), make)
    engine = make(tier)
    assert cached(engine, chain(12)) == 10
    assert engine.stats()["memory"]["hit_tokens_total"] == 10 * BLOCK_TOKENS


def test_a_prefix_is_read_in_windows_never_block_by_block(make: MakeEngine) -> None:
    tier = filled(chain(32), make)
    assert cached(make(tier, prefetch_size=16), chain(40)) == 32
    assert tier.calls[0] == ("match", 40)
    assert sorted(gets(tier)) == [16, 16]


def test_without_prefetch_one_block_is_read_after_another(make: MakeEngine) -> None:
    tier = filled(chain(5), make)
    assert cached(make(tier, prefetch_size=0), chain(5)) == 5
    assert gets(tier) == [1] * 5


def test_what_was_loaded_is_promoted_to_ram(make: MakeEngine) -> None:
    tier = filled(chain(5), make)
    engine = make(tier)
    cached(engine, chain(5))
    tier.calls.clear()
    assert cached(engine, chain(5)) == 5
    assert gets(tier) == []
    assert engine.stats()["ram"]["hit_tokens_total"] == 5 * BLOCK_TOKENS


def test_what_was_loaded_is_not_written_back(make: MakeEngine) -> None:
    tier = filled(chain(5), make)
    engine = make(tier)
    cached(engine, chain(5))
    engine.flush(WAIT_S)
    assert ("set", 5) not in tier.calls


def test_the_next_tier_goes_on_where_the_first_one_ends(make: MakeEngine) -> None:
    near, far = filled(chain(4), make), filled(chain(9), make)
    engine = make(near, far)
    assert cached(engine, chain(10)) == 9
    assert engine.flush(WAIT_S)
    assert len(near.records) == 9  # promoted
    assert len(far.records) == 9


def test_twenty_threads_load_a_prefix_once(make: MakeEngine) -> None:
    tier = filled(chain(8), make)
    engine, counts = make(tier, prefetch_size=8), list[int]()
    gate = threading.Barrier(20)

    def request() -> None:
        gate.wait()
        counts.append(cached(engine, chain(8)))

    threads = [threading.Thread(target=request) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == [8] * 20
    assert gets(tier) == [8]


def test_a_request_that_leaves_while_loading_hands_the_load_on(make: MakeEngine) -> None:
    inner = filled(chain(8), make)
    hung = [Fault(hang=True)]
    tier = FaultyTier(inner, lambda method: hung.pop() if method == "get" and hung else Fault())
    engine = make(tier)
    first = engine.match_prefix(chain(8))
    assert tier.hanging.acquire(timeout=WAIT_S)
    second = engine.match_prefix(chain(8))
    first.release()
    assert len(settled(second).blocks) == 8
    second.release()
    tier.unhang()


# faults


@pytest.mark.parametrize("method", ["match", "get"])
def test_a_tier_that_raises_is_a_miss(make: MakeEngine, method: str) -> None:
    broken = FaultyTier(
        filled(chain(4), make),
        lambda name: Fault(error=OSError(5, "EIO") if name == method else None),
    )
    with pytest.raises(OSError, match="EIO"):  # the control: the fault is real
        getattr(broken, method)(chain(4))
    engine = make(broken)
    assert cached(engine, chain(4)) == 0
    assert engine.stats()["memory"]["call_errors_total"] == 1


LIES: list[tuple[str, object]] = [
    ("match", 10**9),
    ("match", -3),
    ("match", "many"),
    ("match", None),
    ("get", None),
    ("get", []),
    ("get", [b"x" * 64] * 99),
    ("get", [b"short"] * 4),
    ("get", ["text"] * 4),
    ("get", [None] * 4),
]


@pytest.mark.parametrize(("method", "answer"), LIES, ids=range(len(LIES)))
def test_a_tier_that_lies_is_a_miss(make: MakeEngine, method: str, answer: object) -> None:
    tier = FaultyTier(
        MemoryTier() if method == "match" else filled(chain(4), make),
        lambda name: Fault(lies=name == method, answer=answer),
    )
    assert cached(make(tier), chain(4)) == 0
    tier.choose = lambda _: Fault()
    store(engine := make(tier), chain(4))  # the control: without the lie it is a hit
    engine.flush(WAIT_S)
    assert cached(make(tier), chain(4)) == 4


@pytest.mark.parametrize("answer", [10**9, -1, "all", None], ids=repr)
def test_a_tier_that_lies_about_writing_breaks_nothing(make: MakeEngine, answer: object) -> None:
    tier = FaultyTier(MemoryTier(), lambda name: Fault(lies=name == "set", answer=answer))
    engine = make(tier)
    store(engine, chain(4))
    assert engine.flush(WAIT_S)
    stats = engine.stats()["memory"]
    assert stats["queue_written_blocks_total"] + stats["queue_dropped_blocks_total"] == 4
    assert cached(engine, chain(4)) == 4


@pytest.mark.parametrize("method", ["match", "get"])
def test_a_hung_tier_is_a_miss_at_its_deadline_and_then_not_asked(
    make: MakeEngine, clock: ManualClock, method: str
) -> None:
    tier = FaultyTier(filled(chain(4), make), lambda name: Fault(hang=name == method))
    engine = make(tier, tier_deadline_s=2.0)
    match = engine.match_prefix(chain(4))
    assert tier.hanging.acquire(timeout=WAIT_S)
    clock.advance(1.999)
    engine.tick()
    assert not match.settled
    clock.advance(0.001)
    engine.tick()
    assert match.settled
    assert len(match.blocks) == 0
    match.release()
    second = engine.match_prefix(chain(4))
    assert second.settled  # at once: the tier is not asked while a call hangs
    second.release()
    assert engine.stats()["memory"]["calls_overdue"] == 1
    tier.unhang()


def test_a_tier_that_comes_back_is_used_again(make: MakeEngine, clock: ManualClock) -> None:
    tier = FaultyTier(filled(chain(4), make), lambda name: Fault(hang=name == "get"))
    engine = make(tier)
    match = engine.match_prefix(chain(4))
    assert tier.hanging.acquire(timeout=WAIT_S)
    clock.advance(2.0)
    engine.tick()
    match.release()
    tier.unhang()
    while engine.stats()["memory"]["calls_overdue"]:
        threading.Event().wait(0.001)
    assert cached(engine, chain(4)) == 4


def test_calls_past_their_deadline_open_the_breaker_even_if_they_end_well(
    make: MakeEngine, clock: ManualClock
) -> None:
    tier = FaultyTier(filled(chain(3), make), lambda name: Fault(hang=name == "get"))
    engine = make(tier, prefetch_size=1)
    match = engine.match_prefix(chain(3))
    for _ in range(3):  # three windows hang at the same time
        assert tier.hanging.acquire(timeout=WAIT_S)
    clock.advance(2.0)
    engine.tick()
    match.release()
    tier.unhang()
    while engine.stats()["memory"]["calls_overdue"]:
        threading.Event().wait(0.001)
    assert engine.stats()["memory"]["read_breaker_open"] == 1
    assert cached(engine, chain(3)) == 0
    clock.advance(1.0)
    assert cached(engine, chain(3)) == 3


def test_three_failures_in_a_row_shut_a_tier_off_until_its_pause_is_over(
    make: MakeEngine, clock: ManualClock
) -> None:
    faults = {"match": Fault(error=TierUnavailable("gone"))}
    inner = filled(chain(4), make)
    tier = FaultyTier(inner, lambda name: faults.get(name, Fault()))
    engine = make(tier)
    for _ in range(5):
        assert cached(engine, chain(4)) == 0
    assert engine.stats()["memory"]["call_errors_total"] == 3
    assert engine.stats()["memory"]["read_breaker_open"] == 1
    faults.clear()
    assert cached(engine, chain(4)) == 0
    clock.advance(1.0)
    assert cached(engine, chain(4)) == 4
    assert engine.stats()["memory"]["read_breaker_open"] == 0


def test_what_came_before_the_deadline_is_kept(make: MakeEngine, clock: ManualClock) -> None:
    faults = [Fault(hang=True), Fault()]  # popped from the end: the first read works
    tier = FaultyTier(
        filled(chain(8), make), lambda name: faults.pop() if name == "get" else Fault()
    )
    engine = make(tier, prefetch_size=0)
    match = engine.match_prefix(chain(8))
    assert tier.hanging.acquire(timeout=WAIT_S)
    clock.advance(2.0)
    engine.tick()
    assert list(match.blocks) == payloads(chain(1))
    match.release()
    tier.unhang()


# break-even


def test_a_load_that_would_lose_is_refused_and_one_that_wins_is_not(
    make: MakeEngine, clock: ManualClock
) -> None:
    slow = filled(chain(8), make)
    tier = FaultyTier(slow)
    engine = make(tier, max_tokens=4 * BLOCK_TOKENS)

    def tick(_: str) -> Fault:
        clock.advance(0.5)  # every call takes half a second
        return Fault()

    tier.choose = tick
    assert cached(engine, chain(8)) == 8  # not measured yet: allowed
    engine.observe_prefill(1_000_000, 1.0)
    engine.set_blocks(chain(4, 900), 0, payloads(chain(4, 900)))
    assert cached(engine, chain(8)) == 0
    assert engine.stats()["memory"]["loads_refused_total"] == 1
    for _ in range(1000):
        engine.observe_prefill(1, 1000.0)
    assert cached(engine, chain(8)) == 8


def test_break_even_can_be_turned_off(make: MakeEngine, clock: ManualClock) -> None:
    tier = FaultyTier(filled(chain(8), make))
    engine = make(tier, max_tokens=4 * BLOCK_TOKENS, break_even=False)

    def tick(_: str) -> Fault:
        clock.advance(0.5)
        return Fault()

    tier.choose = tick
    engine.observe_prefill(1_000_000, 1.0)
    assert cached(engine, chain(8)) == 8
    engine.set_blocks(chain(4, 900), 0, payloads(chain(4, 900)))
    assert cached(engine, chain(8)) == 8
