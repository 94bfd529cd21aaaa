"""General values behind the RAM: they survive a restart, and a tier's fault is a miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bul.cache.contract import Tier
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.disk.tier import DiskTier
from bul.cache.value_tiers import from_payload, tier_key, to_payload
from bul.cache.values import decode, encode
from bul.config import KVCacheConfig
from bul.testing.tiers import Fault, FaultyTier, MemoryTier

MIB = 1 << 20

MakeEngine = Callable[..., UltraAdaptiveKVCacheEngine]


@pytest.fixture
def make() -> Iterator[MakeEngine]:
    engines = []

    def build(*tiers: Tier, deadline_s: float = 30.0) -> UltraAdaptiveKVCacheEngine:
        config = KVCacheConfig(ram_bytes_max=MIB, tier_deadline_s=deadline_s)
        engines.append(UltraAdaptiveKVCacheEngine(config, tiers=tiers))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close(1.0)


VALUES = [b"", b"x", "", "ñ\ud800", None, 0, {"a": [1, 2.5, None]}, np.arange(6).reshape(2, 3)]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_value_survives_its_payload(value: object) -> None:
    stored = from_payload(to_payload(encode(value)), 0.0)
    assert stored is not None
    result = decode(stored)
    assert type(result) is type(value)
    if isinstance(result, np.ndarray) and isinstance(value, np.ndarray):
        result, value = result.tolist(), value.tolist()
    assert result == value


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", b"j", b"j{", b"s\xff", b"n", b"n\x93NUMPY", b"nPK\x03\x04", b"j" + b"[" * 9999],
)
def test_bytes_that_are_no_value_are_a_miss(payload: bytes) -> None:
    assert from_payload(payload, 0.0) is None


@pytest.mark.security
def test_a_pickled_array_is_not_read() -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    assert from_payload(b"n" + buffer.getvalue(), 0.0) is None


async def test_a_value_survives_a_restart_on_disk(make: MakeEngine, tmp_path: Path) -> None:
    def disk() -> DiskTier:
        return DiskTier(tmp_path, bytes(32), bytes_max=64 * MIB, fsync="none")

    first = make(disk())
    await first.set("numbers", [1, 2, 3])
    await first.set("numbers", [4, 5, 6])
    await first.set("gone", "x")
    await first.delete("gone")
    assert first.close()
    second = make(disk())
    assert await second.get("numbers") == [4, 5, 6]
    assert await second.get("gone") is None
    await second.clear()
    assert second.close()
    third = make(disk())
    assert await third.get("numbers") is None


async def test_the_guides_config_alone_is_enough_to_persist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = KVCacheConfig(
        max_tokens=8192, enable_prefetch=True, prefetch_size=16, enable_persistence=True
    )
    first = UltraAdaptiveKVCacheEngine(config)
    await first.set("key", "value")
    assert first.close()
    second = UltraAdaptiveKVCacheEngine(config)
    assert await second.get("key") == "value"
    assert second.close()


async def test_the_last_of_many_writes_wins(make: MakeEngine) -> None:
    tier = MemoryTier()
    engine = make(tier)
    for number in range(200):
        await engine.set("key", number)
    assert engine.flush()
    assert await make(tier).get("key") == 199


async def test_a_deleted_value_was_there_if_any_tier_had_it(make: MakeEngine) -> None:
    tier = MemoryTier()
    first = make(tier)
    await first.set("key", 1)
    assert first.flush()
    second = make(tier)
    assert await second.delete("key") is True
    assert await second.delete("key") is False
    assert tier.records == {}


async def test_a_value_that_no_queue_takes_leaves_no_older_one(make: MakeEngine) -> None:
    tier = MemoryTier()
    config = KVCacheConfig(ram_bytes_max=64 * MIB, write_queue_bytes_max=MIB)
    engine = UltraAdaptiveKVCacheEngine(config, tiers=[tier])
    await engine.set("key", b"old")
    assert engine.flush()
    await engine.set("key", bytes(2 * MIB))
    assert engine.close()
    assert tier.records == {}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(error=OSError("EIO")),
        Fault(lies=True, answer=None),
        Fault(lies=True, answer=[]),
        Fault(lies=True, answer=["text"]),
        Fault(lies=True, answer=[b"rubbish"]),
        Fault(hang=True),
    ],
    ids=["raises", "none", "empty", "text", "rubbish", "hangs"],
)
async def test_a_broken_tier_is_a_miss(make: MakeEngine, fault: Fault) -> None:
    inner = MemoryTier()
    first = make(inner)
    await first.set("key", b"v")
    first.flush()
    tier = FaultyTier(inner, lambda method: fault if method == "get" else Fault())
    assert await make(tier, deadline_s=0.05).get("key") is None
    tier.unhang()
    assert await make(inner).get("key") == b"v"  # the control: it was there


async def test_a_hung_tier_delays_neither_set_nor_close_for_long(make: MakeEngine) -> None:
    tier = FaultyTier(MemoryTier(), lambda _: Fault(hang=True))
    engine = make(tier, deadline_s=0.05)
    assert await engine.set("key", b"v") is True
    assert await engine.get("key") == b"v"
    assert await engine.delete("key") is True
    await engine.clear()
    assert engine.close(0.05) is False
    tier.unhang()


def test_values_and_blocks_have_different_keys() -> None:
    assert tier_key("a") != tier_key("b")
    assert len(tier_key("\ud800")) == 32
