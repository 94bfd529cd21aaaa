"""The engine's core over RAM alone: matches, holds, single flight, bounds."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from bul.blocks.prefix import PrefixCache, PrefixMatch, RequestFacts
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.config import KVCacheConfig
from bul.testing.clock import ManualClock
from bul.testing.engines import BLOCK_TOKENS, cached, chain, payloads, store

MIB = 1 << 20

MakeEngine = Callable[..., UltraAdaptiveKVCacheEngine]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make(clock: ManualClock) -> Iterator[MakeEngine]:
    engines = []

    def build(**settings: object) -> UltraAdaptiveKVCacheEngine:
        settings = {"eviction": "lru", "block_tokens": BLOCK_TOKENS, "max_tokens": 400} | settings
        engine = UltraAdaptiveKVCacheEngine(KVCacheConfig(**settings), clock=clock)  # type: ignore[arg-type]  # a mixed dict
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.close()


def test_the_guide_needs_no_more_than_a_config() -> None:
    engine = UltraAdaptiveKVCacheEngine(KVCacheConfig())
    contract: PrefixCache = engine
    match: PrefixMatch = contract.match_prefix([])
    assert match.settled
    match.release()
    engine.close()


def test_what_was_set_is_matched_as_the_very_same_buffers(make: MakeEngine) -> None:
    engine, keys = make(), chain(5)
    first = engine.match_prefix(keys)
    assert list(first.blocks) == []
    blocks = payloads(keys)
    engine.set_blocks(keys, 0, blocks)
    first.release()
    second = engine.match_prefix(chain(7))
    assert all(a is b for a, b in zip(second.blocks, blocks, strict=True))
    second.release()


def test_blocks_set_one_by_one_are_all_there(make: MakeEngine) -> None:
    engine, keys = make(), chain(5)
    match = engine.match_prefix(keys)
    for position, block in enumerate(payloads(keys)):
        engine.set_blocks(keys[: position + 1], position, [block])
    match.release()
    assert cached(engine, keys) == 5


def test_a_block_without_its_parent_is_refused(make: MakeEngine) -> None:
    engine, keys = make(), chain(3)
    engine.set_blocks(keys, 1, payloads(keys)[1:])
    assert cached(engine, keys) == 0
    assert engine.stats()["ram"]["blocks"] == 0
    assert engine.stats()["ram"]["refused_total"] == 2


def test_the_ram_tier_keeps_at_most_max_tokens(make: MakeEngine) -> None:
    engine = make(max_tokens=10 * BLOCK_TOKENS)
    for conversation in range(20):
        store(engine, chain(4, 1000 * conversation))
    assert engine.stats()["ram"]["blocks"] <= 10
    assert engine.stats()["ram"]["evictions_total"] == 70
    assert cached(engine, chain(4, 19_000)) == 4
    assert cached(engine, chain(4, 0)) == 0


def test_the_ram_tier_keeps_at_most_its_bytes(make: MakeEngine) -> None:
    engine = make(ram_bytes_max=MIB, max_tokens=1 << 20)
    for conversation in range(20):
        store(engine, chain(4, 1000 * conversation), size=MIB // 16)
        assert engine.stats()["ram"]["bytes"] <= MIB
    assert engine.stats()["ram"]["blocks"] == 16


def test_bytes_stay_bounded_when_sizes_are_mixed(make: MakeEngine) -> None:
    engine = make(ram_bytes_max=MIB, max_tokens=1 << 20)
    for conversation in range(60):
        store(engine, chain(3, 1000 * conversation), size=(1 + conversation % 7) * 32 * 1024)
        assert engine.stats()["ram"]["bytes"] <= MIB
    assert engine.stats()["ram"]["bytes"] > MIB // 2


def test_a_block_larger_than_the_budget_evicts_nothing(make: MakeEngine) -> None:
    engine = make(ram_bytes_max=MIB)
    store(engine, chain(4))
    store(engine, chain(1, 9000), size=2 * MIB)
    assert engine.stats()["ram"]["blocks"] == 4
    assert engine.stats()["ram"]["refused_total"] == 1


def test_held_blocks_are_not_evicted_and_released_ones_are(make: MakeEngine) -> None:
    engine = make(max_tokens=4 * BLOCK_TOKENS)
    store(engine, chain(4))
    match = engine.match_prefix(chain(4))
    store(engine, chain(4, 5000))
    assert cached(engine, chain(4)) == 4
    match.release()
    store(engine, chain(4, 7000))
    assert cached(engine, chain(4)) == 0  # the control: without the hold they go


def test_releasing_twice_gives_up_one_hold(make: MakeEngine) -> None:
    engine = make(max_tokens=4 * BLOCK_TOKENS)
    store(engine, chain(4))
    first, second = engine.match_prefix(chain(4)), engine.match_prefix(chain(4))
    first.release()
    first.release()
    store(engine, chain(4, 5000))
    assert cached(engine, chain(4)) == 4
    second.release()


def test_clearing_leaves_matches_in_use_their_buffers(make: MakeEngine) -> None:
    engine = make()
    store(engine, chain(4))
    match = engine.match_prefix(chain(4))
    engine.clear_ram()
    assert list(match.blocks) == payloads(chain(4))
    assert cached(engine, chain(4)) == 0
    store(engine, chain(4))  # the same keys again, while the old match still lives
    match.release()
    assert cached(engine, chain(4)) == 4


def test_a_second_request_waits_for_the_first_ones_blocks(make: MakeEngine) -> None:
    engine, keys, woken = make(), chain(4), []
    first, second = engine.match_prefix(keys), engine.match_prefix(keys)
    second.when_settled(lambda: woken.append("second"))
    assert first.settled
    assert not second.settled
    engine.set_blocks(keys[:2], 0, payloads(keys)[:2])
    assert not second.settled
    engine.set_blocks(keys, 2, payloads(keys)[2:])
    assert second.settled
    assert woken == ["second"]
    assert list(second.blocks) == payloads(keys)
    first.release()
    second.release()


def test_the_callback_of_a_settled_match_is_called_at_once(make: MakeEngine) -> None:
    called: list[int] = []
    match = make().match_prefix(chain(1))
    match.when_settled(lambda: called.append(1))
    assert called == [1]
    match.release()


def test_a_waiter_takes_over_where_the_claimant_gave_up(make: MakeEngine) -> None:
    engine, keys = make(), chain(4)
    first, second, third = (engine.match_prefix(keys) for _ in range(3))
    engine.set_blocks(keys[:1], 0, payloads(keys)[:1])
    first.release()
    assert second.settled
    assert len(second.blocks) == 1
    assert not third.settled
    engine.set_blocks(keys, 1, payloads(keys)[1:])
    assert len(third.blocks) == 4
    second.release()
    third.release()


def test_who_shares_only_the_beginning_waits_only_for_that(make: MakeEngine) -> None:
    engine, keys = make(), chain(4)
    other = keys[:2] + chain(2, 900)
    first, second = engine.match_prefix(keys), engine.match_prefix(other)
    engine.set_blocks(keys[:2], 0, payloads(keys)[:2])
    assert second.settled
    assert len(second.blocks) == 2
    first.release()
    second.release()


def test_waiters_get_the_blocks_even_if_the_policy_keeps_none(make: MakeEngine) -> None:
    engine, keys = make(max_tokens=BLOCK_TOKENS), chain(4)
    first, second = engine.match_prefix(keys), engine.match_prefix(keys)
    engine.set_blocks(keys, 0, payloads(keys))
    assert list(second.blocks) == payloads(keys)
    assert engine.stats()["ram"]["blocks"] == 1
    first.release()
    second.release()


def test_a_claim_without_progress_ends_exactly_at_its_age(
    make: MakeEngine, clock: ManualClock
) -> None:
    engine, keys = make(claim_age_s_max=60.0), chain(2)
    first, second = engine.match_prefix(keys), engine.match_prefix(keys)
    clock.advance(59.9)
    engine.tick()
    assert not second.settled
    engine.set_blocks(keys[:1], 0, payloads(keys)[:1])  # progress: the age starts again
    clock.advance(59.9)
    engine.tick()
    assert not second.settled
    clock.advance(0.1)
    engine.tick()
    assert second.settled
    assert engine.stats()["engine"]["claims_expired_total"] == 1
    first.release()
    second.release()


def test_the_housekeeper_ends_old_claims_by_itself() -> None:
    engine = UltraAdaptiveKVCacheEngine(KVCacheConfig(eviction="lru", claim_age_s_max=0.01))
    first, second = engine.match_prefix(chain(2)), engine.match_prefix(chain(2))
    done = threading.Event()
    second.when_settled(done.set)
    assert done.wait(30)
    first.release()
    second.release()
    engine.close()


def test_a_waiter_that_leaves_is_forgotten(make: MakeEngine) -> None:
    engine, keys = make(), chain(2)
    first, second = engine.match_prefix(keys), engine.match_prefix(keys)
    second.release()
    assert engine.stats()["engine"]["matches_waiting"] == 0
    first.release()
    assert engine.stats()["engine"]["matches_alive"] == 0


def test_a_dropped_match_is_counted_released_and_told(
    make: MakeEngine, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine, keys = make(max_tokens=4 * BLOCK_TOKENS), chain(4)
    store(engine, keys)
    match = engine.match_prefix(keys)
    clock.advance(12.5)
    del match
    gc.collect()
    with caplog.at_level(logging.WARNING):
        engine.tick()
    assert engine.stats()["engine"]["matches_leaked_total"] == 1
    assert engine.stats()["engine"]["matches_alive"] == 0
    assert "12.5 s" in caplog.text
    store(engine, chain(4, 5000))
    assert cached(engine, keys) == 0


def test_a_block_is_gone_exactly_when_its_time_is_over(
    make: MakeEngine, clock: ManualClock
) -> None:
    engine = make(ttl_s=30.0)
    store(engine, chain(3))
    clock.advance(29.999)
    assert cached(engine, chain(3)) == 3
    clock.advance(0.001)
    assert cached(engine, chain(3)) == 0
    store(engine, chain(3))
    assert cached(engine, chain(3)) == 3


def test_two_hundred_identical_requests_compute_each_block_once(make: MakeEngine) -> None:
    engine, keys, computed = make(), chain(8), []
    gate = threading.Barrier(20)

    def request() -> None:
        gate.wait()
        for _ in range(10):
            match, ready = engine.match_prefix(keys), threading.Event()
            match.when_settled(ready.set)
            assert ready.wait(30)
            cached_blocks = len(match.blocks)
            if cached_blocks < len(keys):
                computed.append(len(keys) - cached_blocks)
                engine.set_blocks(keys, cached_blocks, payloads(keys)[cached_blocks:])
            match.release()

    threads = [threading.Thread(target=request) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert computed == [8]
    assert engine.stats()["engine"]["matches_alive"] == 0


def test_hit_tokens_are_counted_in_all_and_by_class(make: MakeEngine) -> None:
    engine = make()
    store(engine, chain(3))
    match = engine.match_prefix(chain(5), RequestFacts(priority="batch"))
    match.release()
    assert engine.stats()["engine"]["asked_tokens_total"] == 8 * BLOCK_TOKENS
    assert engine.stats()["engine"]["cached_tokens_total"] == 3 * BLOCK_TOKENS
    assert engine.stats()["ram"]["hit_tokens_total"] == 3 * BLOCK_TOKENS
    assert engine.stats_by_class()["batch"] == {
        "matches_total": 1,
        "asked_tokens_total": 5 * BLOCK_TOKENS,
        "cached_tokens_total": 3 * BLOCK_TOKENS,
    }


def test_a_pinned_prefix_stays_until_it_is_unpinned(make: MakeEngine) -> None:
    engine = make(max_tokens=8 * BLOCK_TOKENS)
    store(engine, chain(3))
    assert engine.pin(chain(3))
    assert engine.pin(chain(3))  # once is enough
    for number in range(5):
        store(engine, chain(6, 1000 + 100 * number))
    assert cached(engine, chain(3)) == 3
    assert engine.unpin(chain(3)) is True
    assert engine.unpin(chain(3)) is False
    for number in range(5):
        store(engine, chain(8, 2000 + 100 * number))
    assert cached(engine, chain(3)) == 0


def test_at_most_half_of_the_capacity_is_pinned_and_only_what_is_there(make: MakeEngine) -> None:
    engine = make(max_tokens=8 * BLOCK_TOKENS)
    store(engine, chain(5))
    assert not engine.pin(chain(5))
    assert engine.pin(chain(4))
    assert not engine.pin(chain(1, 900))
    assert not engine.pin([])
    engine.clear_ram()
    assert engine.stats()["ram"]["pinned_prefixes"] == 0


def test_the_urgent_do_not_wait_for_the_less_urgent_and_who_waited_goes_with_them(
    make: MakeEngine,
) -> None:
    engine, keys = make(), chain(4)
    batch, interactive = RequestFacts(priority="batch"), RequestFacts(priority="interactive")
    first, second = engine.match_prefix(keys, batch), engine.match_prefix(keys, batch)
    assert not second.settled  # the control: equals wait
    urgent = engine.match_prefix(keys, interactive)
    assert urgent.settled
    late = engine.match_prefix(keys, interactive)
    assert not late.settled
    engine.set_blocks(keys, 0, payloads(keys))
    assert late.settled
    assert second.settled
    assert len(second.blocks) == 4
    for match in (first, second, urgent, late):
        match.release()
    assert engine.stats()["engine"]["matches_alive"] == 0


def test_the_ages_of_ram_are_those_of_its_first_and_last_block(
    make: MakeEngine, clock: ManualClock
) -> None:
    engine = make()
    assert "oldest_block_age_s" not in engine.stats()["ram"]
    store(engine, chain(3))
    clock.advance(50.0)
    store(engine, chain(2, 900))
    clock.advance(7.0)
    ram = engine.stats()["ram"]
    assert (ram["oldest_block_age_s"], ram["newest_block_age_s"]) == (57.0, 7.0)
