"""Writing through to slower tiers, and closing: nothing waits, nothing is lost unsaid."""

from __future__ import annotations

from bul.testing.clock import ManualClock
from bul.testing.engines import BLOCK_TOKENS, WAIT_S, MakeEngine, cached, chain, filled, store
from bul.testing.tiers import Fault, FaultyTier, MemoryTier


def test_a_full_write_queue_drops_and_counts_and_ram_keeps(make: MakeEngine) -> None:
    tier = FaultyTier(MemoryTier(), lambda name: Fault(hang=name == "set"))
    engine = make(tier, block_bytes=0, write_queue_bytes_max=1 << 20)
    keys = chain(8)
    engine.set_blocks(keys, 0, [bytes(1 << 19)] * 8)
    assert engine.stats()["memory"]["queue_dropped_blocks_total"] == 6
    assert engine.stats()["memory"]["queue_bytes"] == 1 << 20
    assert engine.stats()["ram"]["blocks"] == 8
    tier.unhang()
    assert engine.flush(WAIT_S)
    assert engine.stats()["memory"]["queue_bytes"] == 0


def test_a_dropped_block_is_offered_again_when_ram_evicts_it(make: MakeEngine) -> None:
    inner = MemoryTier()
    tier = FaultyTier(inner, lambda name: Fault(hang=name == "set"))
    engine = make(tier, block_bytes=0, max_tokens=4 * BLOCK_TOKENS, write_queue_bytes_max=1 << 20)
    first, second = chain(4), chain(4, 900)
    engine.set_blocks(first, 0, [bytes(1 << 19)] * 4)
    assert len(inner.records) == 0
    tier.unhang()
    assert engine.flush(WAIT_S)
    assert len(inner.records) == 2
    engine.set_blocks(second, 0, [b""] * 4)
    assert engine.flush(WAIT_S)
    assert set(first) & set(inner.records) == set(first)


def test_a_tier_that_fails_to_write_loses_blocks_and_nothing_else(make: MakeEngine) -> None:
    tier = FaultyTier(MemoryTier(), lambda name: Fault(error=OSError(28, "ENOSPC")))
    engine = make(tier)
    store(engine, chain(4))
    assert engine.flush(WAIT_S)
    assert engine.stats()["memory"]["queue_dropped_blocks_total"] == 4
    assert cached(engine, chain(4)) == 4


def test_records_carry_their_parent_and_their_end(make: MakeEngine, clock: ManualClock) -> None:
    tier = MemoryTier(wall_s=clock.wall_s)
    engine = make(tier, ttl_s=60.0)
    store(engine, chain(2))
    assert engine.flush(WAIT_S)
    first, second = (tier.records[key] for key in chain(2))
    assert (first.parent, second.parent) == (b"", chain(1)[0])
    assert second.expires_wall_s == clock.wall_s() + 60.0
    assert second.tokens == BLOCK_TOKENS


def test_closing_writes_what_is_queued_and_closes_the_tier(make: MakeEngine) -> None:
    inner = MemoryTier()
    engine = make(FaultyTier(inner, lambda name: Fault(delay_s=0.01 * (name == "set"))))
    store(engine, chain(8))
    assert engine.close() is True
    assert len(inner.records) == 8
    assert inner.closed


def test_closing_does_not_wait_for_a_hung_tier(make: MakeEngine) -> None:
    tier = FaultyTier(filled(chain(4), make), lambda name: Fault(hang=name == "get"))
    engine = make(tier)
    match = engine.match_prefix(chain(4))
    assert tier.hanging.acquire(timeout=WAIT_S)
    assert engine.close(timeout_s=0.05) is False
    assert match.settled
    match.release()
    tier.unhang()
