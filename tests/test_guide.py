"""The scaling guide's snippets run, with their obvious slips mended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

import bul
from bul import (
    IntelligentAutoScaler,
    KVCacheConfig,
    MultiRegionCache,
    UltraAdaptiveKVCacheEngine,
    should_scale_up,
)
from bul.config import RegionsConfig
from bul.testing.clock import ManualClock
from bul.testing.scaling import FakeDriver, FakeSource

PHASES: dict[str, dict[str, object]] = {
    "scale up": {"max_tokens": 16384, "enable_distributed": True, "num_workers": 64},
    "1": {"max_tokens": 4096, "enable_prefetch": True, "prefetch_size": 8},
    "2": {
        "max_tokens": 8192,
        "enable_prefetch": True,
        "prefetch_size": 16,
        "enable_persistence": True,
    },
    "3": {
        "max_tokens": 16384,
        "enable_distributed": True,
        "enable_prefetch": True,
        "prefetch_size": 32,
    },
    "4": {
        "max_tokens": 16384,
        "enable_distributed": True,
        "distributed_backend": "nccl",
        "enable_prefetch": True,
        "prefetch_size": 32,
    },
}


@pytest.mark.parametrize("phase", PHASES)
def test_every_config_of_the_guide_can_be_written_anywhere(phase: str) -> None:
    config = KVCacheConfig(**PHASES[phase])  # type: ignore[arg-type]  # a table of mixed fields
    assert config.max_tokens == PHASES[phase]["max_tokens"]


def test_the_engine_gets_and_sets_as_in_the_guide() -> None:
    async def snippet() -> tuple[object, object, object]:
        engine = UltraAdaptiveKVCacheEngine(
            KVCacheConfig(max_tokens=4096, enable_prefetch=True, prefetch_size=8)
        )
        try:
            await engine.set("empty", b"")
            missing = await engine.get("missing")
            await engine.set("zero", 0)
            return await engine.get("empty"), missing, await engine.get("zero")
        finally:
            engine.close()

    # The guide's `if result:` would take the first and the last for misses.
    assert asyncio.run(snippet()) == (b"", None, 0)


@pytest.mark.slow
def test_the_multi_region_cache_gets_and_keeps_as_in_the_guide() -> None:
    async def snippet() -> tuple[object, ...]:
        async with two_regions() as (here, there):
            await there.set("empty", b"")
            await there.set("zero", 0)
            found = await here.get("empty"), await here.get("zero"), await here.get("missing")
            kept = await here.local_cache.get("empty"), await here.local_cache.get("zero")
            remote = await here.remote_caches["eu-west"].get("zero")
            return *found, *kept, remote

    # The guide's `if result:` would ask every region for the first two, and never keep them.
    assert asyncio.run(snippet()) == (b"", 0, None, b"", 0, 0)


@contextlib.asynccontextmanager
async def two_regions() -> AsyncIterator[tuple[MultiRegionCache, MultiRegionCache]]:
    names = ["us-east", "eu-west"]
    ports = dict(zip(names, free_ports(2), strict=True))
    caches = []
    for name in names:
        peers = tuple(f"{n}=http://127.0.0.1:{ports[n]}" for n in names if n != name)
        settings = RegionsConfig(name=name, port=ports[name], peers=peers, peer_secret="s" * 32)
        caches.append(MultiRegionCache(names, settings=settings))
    async with caches[0], caches[1]:
        yield caches[0], caches[1]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


QUIET = {
    "requests_per_second": 10.0,
    "p95_latency": 500.0,
    "cpu_utilization": 0.8,
    "memory_utilization": 0.5,
    "cache_hit_rate": 0.5,
    "error_rate": 0.01,
    "active_connections": 3.0,
}


def test_nothing_scales_up_at_the_guides_thresholds() -> None:
    assert not should_scale_up(QUIET)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("requests_per_second", 1000.5),
        ("p95_latency", 500.5),
        ("cpu_utilization", 0.81),
        ("error_rate", 0.011),
    ],
)
def test_each_of_the_guides_four_reasons_scales_up_alone(name: str, value: float) -> None:
    assert should_scale_up(QUIET | {name: value})


def test_the_auto_scaler_of_the_guide_scales_up_and_down() -> None:
    async def snippet() -> list[tuple[str, int]]:
        clock = ManualClock()
        driver = FakeDriver(2)
        source = FakeSource(clock, ttft_p95_ms=501.0, utilization=0.5)
        scaler = IntelligentAutoScaler(driver, source, policy="guide", clock=clock)
        assert (scaler.min_replicas, scaler.max_replicas) == (2, 10)
        assert scaler.target_latency_p95 == 500
        assert (scaler.scale_up_threshold, scaler.scale_down_threshold) == (0.8, 0.3)
        seen = []
        for values in (
            {"ttft_p95_ms": 501.0, "utilization": 0.5},
            {"ttft_p95_ms": 500.0, "utilization": 0.81},
            {"ttft_p95_ms": 500.0, "utilization": 0.8},
            {"ttft_p95_ms": 249.0, "utilization": 0.29},
            {"ttft_p95_ms": 250.0, "utilization": 0.29},
        ):
            source.values = values
            clock.advance(15.0)
            decision = await scaler.check_and_scale()
            driver.become_ready()
            seen.append((decision.direction.value, scaler.current_replicas))
        await scaler.scale_up()
        await scaler.scale_down()
        return [*seen, ("by hand", scaler.current_replicas)]

    assert asyncio.run(snippet()) == [
        ("up", 3),
        ("up", 4),
        ("hold", 4),
        ("down", 3),
        ("hold", 3),
        ("by hand", 3),
    ]


def test_public_names_are_all_there_and_no_other_is() -> None:
    assert all(getattr(bul, name) is not None for name in bul.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = bul.Nothing
