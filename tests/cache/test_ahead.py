"""Loading ahead: what comes, what leaves for it (nothing), and who waits for it (nobody)."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from bul.blocks.prefix import Buffer, RequestFacts
from bul.cache.ahead import QUIET_S, Ahead
from bul.cache.contract import BlockRecord
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.prefetch import KEYS_MAX, SESSIONS_MAX, Wishes
from bul.cache.tiers.disk import DiskTier
from bul.config import KVCacheConfig
from bul.testing.clock import ManualClock
from bul.testing.disk_folder import IDENTITY, Open
from bul.testing.engines import BLOCK_TOKENS, WAIT_S, MakeEngine, cached, chain, settled, store
from bul.testing.tiers import Fault, FaultyTier, MemoryTier
from bul.testing.waiting import eventually

CHAINS = [chain(6, 1000 * number) for number in range(5)]


class HotTier(MemoryTier):
    """Knows what was hot: the chains that a test says."""

    def __init__(self, chains: Sequence[Sequence[bytes]]) -> None:
        super().__init__()
        self.chains = chains
        parents = {key: parent for keys in chains for parent, key in zip(keys, keys[1:])}  # noqa: B905, RUF007 - pairs
        self.set(
            [
                BlockRecord(key=key, parent=parents.get(key, b""), tokens=4, payload=key * 2)
                for keys in chains
                for key in keys
            ]
        )
        self.calls.clear()

    def hottest(self, blocks_max: int) -> Iterator[Sequence[bytes]]:
        yield from self.chains


def ahead_of(
    engine: UltraAdaptiveKVCacheEngine, clock: ManualClock, slice_blocks_max: int = 64
) -> Ahead:
    """One without a thread, beside the engine's own (which is off)."""
    return Ahead(
        engine._resident,
        engine._loads,
        dataclasses.replace(engine.config, prefetch_bytes_per_s_max=1 << 30),
        engine._lock,
        clock,
        slice_blocks_max=slice_blocks_max,
    )


def run_until_idle(ahead: Ahead, clock: ManualClock) -> None:
    for _ in range(200):
        clock.advance(QUIET_S)
        if ahead.step() == 1.0:
            return
    raise AssertionError("it never ran out of work")


def in_ram(engine: UltraAdaptiveKVCacheEngine) -> list[int]:
    return [sum(engine.presence(keys)["ram"]) for keys in CHAINS]


def test_an_empty_ram_gets_the_hottest_chains_up_to_its_half(
    make: MakeEngine, clock: ManualClock
) -> None:
    engine = make(HotTier(CHAINS), prefetch_bytes_per_s_max=0, max_tokens=40 * 4)
    ahead = ahead_of(engine, clock)
    ahead.warm_up()
    run_until_idle(ahead, clock)
    assert in_ram(engine) == [6, 6, 6, 2, 0]  # half of 40 blocks, the hottest first
    assert ahead.stats()["ahead_blocks_total"] == 20
    for times in (1, 2):  # the first time it is the tier's gift, then RAM's
        assert cached(engine, CHAINS[0]) == 6
        stats = engine.stats()
        assert stats["memory"]["hit_tokens_total"] == 6 * BLOCK_TOKENS
        assert stats["ram"]["hit_tokens_total"] == 6 * (times - 1) * BLOCK_TOKENS
        assert stats["engine"]["ahead_used_blocks_total"] == 6


def test_nothing_is_loaded_ahead_when_it_is_switched_off(
    make: MakeEngine, clock: ManualClock
) -> None:
    for settings in ({"prefetch_bytes_per_s_max": 0}, {"enable_prefetch": False}):
        engine = make(HotTier(CHAINS), **settings)
        assert engine._ahead._thread is None
    assert make(HotTier(CHAINS))._ahead._thread is not None
    assert make()._ahead._thread is None  # no tier to load from


async def test_the_engine_s_own_thread_fills_the_ram_after_a_restart(open_tier: Open) -> None:
    def open_engine() -> UltraAdaptiveKVCacheEngine:
        config = KVCacheConfig(block_tokens=BLOCK_TOKENS)
        return UltraAdaptiveKVCacheEngine(config, identity=IDENTITY, tiers=[open_tier()])

    first = open_engine()
    for keys in CHAINS:
        store(first, keys)
    first.close()
    second = open_engine()
    await eventually("all was loaded", lambda: second.stats()["engine"]["ahead_blocks_total"] == 30)
    assert cached(second, CHAINS[2]) == 6
    assert second.stats()["engine"]["ahead_used_blocks_total"] == 6
    second.close()


def test_what_is_loaded_ahead_makes_nothing_leave_and_leaves_first(
    make: MakeEngine, clock: ManualClock
) -> None:
    engine = make(HotTier(CHAINS), prefetch_bytes_per_s_max=0, max_tokens=12 * 4)
    own = chain(8, 50_000)
    store(engine, own)
    assert engine.flush(WAIT_S)
    ahead = ahead_of(engine, clock)
    ahead.warm_up()
    run_until_idle(ahead, clock)
    assert in_ram(engine) == [4, 0, 0, 0, 0]
    assert engine.stats()["ram"]["evictions_total"] == 0
    store(engine, chain(3, 60_000))
    assert sum(engine.presence(own)["ram"]) == 8
    assert in_ram(engine) == [1, 0, 0, 0, 0]


class Rude(Ahead):
    """The control: it does not look whether anybody asks."""

    def busy_s(self) -> float:
        return 0.0


@pytest.mark.parametrize("polite", [True, False])
def test_while_a_request_is_under_way_nothing_is_loaded_ahead(
    make: MakeEngine, clock: ManualClock, *, polite: bool
) -> None:
    engine = make(HotTier(CHAINS), prefetch_bytes_per_s_max=0)
    ahead = ahead_of(engine, clock)
    ahead.__class__ = Ahead if polite else Rude
    ahead.warm_up()
    clock.advance(QUIET_S)
    match = settled(engine.match_prefix(chain(3, 70_000)))
    waits = [ahead.step() for _ in range(3)]
    assert (in_ram(engine) == [0] * 5) is polite
    assert (waits == [QUIET_S] * 3) is polite
    match.release()
    run_until_idle(ahead, clock)
    assert in_ram(engine) == [6] * 5


def test_a_chain_that_a_request_interrupts_is_gone_on_with_and_counted(
    make: MakeEngine, clock: ManualClock
) -> None:
    engine = make(HotTier(CHAINS), prefetch_bytes_per_s_max=0)
    ahead = ahead_of(engine, clock, slice_blocks_max=2)
    ahead.warm_up()
    clock.advance(QUIET_S)
    ahead.step()
    assert in_ram(engine) == [2, 0, 0, 0, 0]
    match = settled(engine.match_prefix(chain(3, 70_000)))
    ahead.step()
    ahead.step()
    match.release()
    assert ahead.stats()["ahead_shed_total"] == 1
    run_until_idle(ahead, clock)
    assert in_ram(engine) == [6] * 5


@pytest.mark.parametrize("own_thread", [True, False])
def test_a_slice_that_takes_long_holds_no_request_up(
    make: MakeEngine, clock: ManualClock, *, own_thread: bool
) -> None:
    hanging = [True]

    def choose(method: str) -> Fault:
        hang = method == "get" and hanging[0]
        hanging[0] &= not hang
        return Fault(hang=hang)

    inner = HotTier(CHAINS)
    tier = FaultyTier(inner, choose)
    tier.hottest = inner.hottest  # type: ignore[attr-defined]  # as the inner one has it
    engine = make(tier, prefetch_bytes_per_s_max=0, num_workers=1)
    ahead = ahead_of(engine, clock)
    ahead.warm_up()
    clock.advance(QUIET_S)
    reader: list[object] = []
    thread = threading.Thread(target=ahead.step)
    if own_thread:
        thread.start()
    else:  # the control: on the only thread that requests have too
        engine._lanes[0].read(lambda: reader.append(ahead.step()))
    assert tier.hanging.acquire(timeout=WAIT_S)
    done = threading.Event()
    match = engine.match_prefix(CHAINS[3])
    match.when_settled(done.set)
    assert done.wait(WAIT_S if own_thread else 0.2) is own_thread
    tier.unhang()
    if own_thread:
        thread.join()
    assert len(settled(match).blocks) == 6
    match.release()


def test_a_slice_that_hangs_does_not_keep_the_engine_from_closing() -> None:
    inner = HotTier(CHAINS)
    tier = FaultyTier(inner, lambda method: Fault(hang=method == "get"))
    tier.hottest = inner.hottest  # type: ignore[attr-defined]  # as the inner one has it
    config = KVCacheConfig(block_tokens=BLOCK_TOKENS)
    engine = UltraAdaptiveKVCacheEngine(config, tiers=[tier])
    assert tier.hanging.acquire(timeout=WAIT_S)
    engine.close(timeout_s=0.05)
    tier.unhang()


@pytest.mark.parametrize("answer", [[], [b"x"] * 9, "none of it", [1, 2], None])
def test_a_tier_that_lies_gives_nothing_ahead(
    make: MakeEngine, clock: ManualClock, answer: object
) -> None:
    inner = HotTier(CHAINS)
    tier = FaultyTier(inner, lambda method: Fault(lies=method == "get", answer=answer))
    tier.hottest = inner.hottest  # type: ignore[attr-defined]  # as the inner one has it
    engine = make(tier, prefetch_bytes_per_s_max=0)
    ahead = ahead_of(engine, clock)
    ahead.warm_up()
    run_until_idle(ahead, clock)
    assert in_ram(engine) == [0] * 5


@pytest.mark.parametrize("what", ["its start left", "others were faster"])
def test_what_changes_between_read_and_keep_gives_no_wrong_block(
    make: MakeEngine, clock: ManualClock, what: str
) -> None:
    inner = HotTier(CHAINS)
    engine = make(inner, prefetch_bytes_per_s_max=0)
    store(engine, CHAINS[0][:3])
    ahead, get = ahead_of(engine, clock), inner.get

    def meanwhile(keys: Sequence[bytes]) -> list[Buffer | None]:
        inner.get = get  # type: ignore[method-assign]  # once
        found = get(keys)
        if what == "its start left":
            engine.clear_ram()
        else:
            store(engine, CHAINS[0])
        return found

    inner.get = meanwhile  # type: ignore[method-assign]  # something happens during the read
    ahead.warm_up()
    clock.advance(QUIET_S)
    ahead.step()
    assert in_ram(engine)[0] == (0 if what == "its start left" else 6)
    assert cached(engine, CHAINS[0]) == 6
    run_until_idle(ahead, clock)
    assert [cached(engine, keys) for keys in CHAINS] == [6] * 5


def test_a_conversation_that_is_due_comes_back_into_an_emptied_ram(
    make: MakeEngine, clock: ManualClock
) -> None:
    engine = make(MemoryTier(), prefetch_bytes_per_s_max=0)
    ahead = ahead_of(engine, clock)
    for keys in CHAINS[:2]:
        store(engine, keys, facts=RequestFacts(tenant="t"))
        ahead.ended(keys, "t")
    assert engine.flush(WAIT_S)
    ahead.ended(chain(4, 80_000), "t")  # no tier has it: asked for once, not again and again
    engine.clear_ram()
    run_until_idle(ahead, clock)
    assert in_ram(engine) == [6, 6, 0, 0, 0]
    assert engine._resident.tenant_blocks == {"t": 12}
    engine.clear_ram()
    clock.advance(3600.0)  # both are taken to be over
    run_until_idle(ahead, clock)
    assert in_ram(engine) == [0] * 5


def due(wishes: Wishes, now_s: float) -> list[Sequence[bytes]]:
    return [path for path, _ in wishes.due(now_s)]


def test_the_conversation_that_is_due_soonest_comes_first_and_one_long_overdue_not_at_all() -> None:
    wishes, quick, slow = Wishes(), chain(3), chain(3, 900)
    for now_s, keys in ((0.0, quick), (0.0, slow), (10.0, quick), (100.0, slow), (105.0, quick)):
        wishes.ended(keys, "", now_s)
    assert len(wishes) == 2
    assert due(wishes, 105.0) == [quick, slow]  # gaps of 10 and 95 s: due at 157.5; 100: at 200
    assert due(wishes, 105.0 + 52.5 * 3) == [quick, slow]
    assert due(wishes, 105.0 + 52.5 * 3 + 0.1) == [slow]


def test_a_longer_path_goes_on_with_a_conversation_and_another_one_does_not() -> None:
    wishes = Wishes()
    wishes.ended(chain(3), "", 0.0)
    wishes.ended(chain(5), "", 30.0)
    assert len(wishes) == 1
    wishes.ended(chain(5)[:2], "", 40.0)
    assert len(wishes) == 2


def test_conversations_are_bounded_in_number_and_in_keys() -> None:
    wishes = Wishes()
    for number in range(SESSIONS_MAX + 10):
        wishes.ended([b"%d" % number], "", 0.0)
    assert len(wishes) == SESSIONS_MAX
    wishes.ended([b"long"] * (KEYS_MAX - 3), "", 0.0)
    assert len(wishes) == 4
    assert wishes._keys == KEYS_MAX


def _records(keys: Sequence[bytes], tokens: int = 4) -> list[BlockRecord]:
    return [
        BlockRecord(key=key, parent=parent, tokens=tokens, payload=key)
        for parent, key in zip([b"", *keys], keys, strict=False)
    ]


def test_a_folder_names_its_chains_the_last_written_first(open_tier: Open) -> None:
    tier = open_tier()
    for keys in CHAINS:
        tier.set(_records(keys))
    tier.set(_records([b"v" * 32], tokens=0))  # a general value is no chain
    assert list(tier.hottest(1000)) == CHAINS[::-1]
    assert list(tier.hottest(8)) == CHAINS[:2:-1]
    assert list(tier.hottest(1)) == [CHAINS[4]]


@pytest.mark.parametrize("harm", [lambda tier: tier.delete([CHAINS[1][0]]), lambda tier: None])
def test_a_chain_without_its_root_is_not_named(
    open_tier: Open, harm: Callable[[DiskTier], object]
) -> None:
    tier = open_tier()
    for keys in CHAINS[:2]:
        tier.set(_records(keys))
    whole = harm(tier) is None
    assert (CHAINS[1] in list(tier.hottest(1000))) is whole
    assert CHAINS[0] in list(tier.hottest(1000))
