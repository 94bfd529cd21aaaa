"""The wiring of a region's scaler: limits and settings from flags, signals from real replicas."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bul.cli.scaler import RegionScaler, RegionSource, scale_limits
from bul.config import RouteConfig, ScaleConfig, Settings, UpConfig
from bul.errors import ConfigError
from bul.router.app import Router
from bul.scaling.registry import POLICY_NAMES, make_policy
from bul.testing.replica import running_replica
from bul.testing.request_load import RequestLoad
from bul.testing.scaling import FakeDriver
from bul.testing.waiting import eventually

SCENARIOS = {"traffic-spikes": (3, 20), "constant-high": (10, 10), "variable": (2, 15)}


def settings(replicas: int = 2, **scale: object) -> Settings:
    config = ScaleConfig(**scale)  # type: ignore[arg-type]  # by name
    origins = {"up.replicas": "--replicas"}
    return Settings(up=UpConfig(replicas=replicas), scale=config, origins=origins)


def test_without_a_maximum_or_a_scenario_nothing_scales() -> None:
    assert scale_limits(settings()) is None


def test_the_replicas_asked_for_are_the_fewest() -> None:
    limits = scale_limits(settings(replicas=3, max_replicas=7))
    assert limits is not None
    assert (limits.min_replicas, limits.max_replicas) == (3, 7)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_of_the_guide_brings_its_limits(scenario: str) -> None:
    limits = scale_limits(settings(scenario=scenario))
    assert limits is not None
    assert (limits.min_replicas, limits.max_replicas) == SCENARIOS[scenario]
    assert (scale_limits(settings(scenario=scenario, max_replicas=30)) or limits).max_replicas == 30


def test_the_variable_scenario_brings_the_guides_thresholds_and_cooldowns() -> None:
    limits = scale_limits(settings(scenario="variable", policy="guide"))
    assert limits is not None
    assert limits.settings["scale_up_threshold"] == 0.75
    assert limits.settings["scale_down_threshold"] == 0.25
    assert limits.settings["scale_up_cooldown"] == 300.0
    assert limits.settings["scale_down_cooldown"] == 600.0
    adaptive = scale_limits(settings(scenario="variable"))
    assert adaptive is not None
    assert adaptive.settings["scale_down_cooldown_s"] == 600.0


def test_a_cooldown_that_is_given_overrules_the_scenarios() -> None:
    limits = scale_limits(settings(scenario="variable", cooldown_down_s=5.0))
    assert limits is not None
    assert limits.settings["scale_down_cooldown_s"] == 5.0


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("scenario", ["", *SCENARIOS])
def test_every_policy_takes_the_settings_of_every_scenario(policy: str, scenario: str) -> None:
    limits = scale_limits(settings(policy=policy, scenario=scenario, max_replicas=20, target=3.0))
    assert limits is not None
    given: dict[str, Any] = dict(limits.settings)
    make_policy(policy, **given)


def test_limits_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_replicas must be at least 5 replicas, was 4"):
        scale_limits(settings(replicas=5, max_replicas=4))


@contextlib.asynccontextmanager
async def routed(*urls: str) -> AsyncIterator[Router]:
    router = Router(RouteConfig(port=0, replicas=urls, probe_interval_s=0.05))
    await router.start()
    await eventually("all are ready", lambda: len(router.ready) == len(urls))
    yield router
    await router.stop()


async def test_signals_come_from_the_router_and_the_replicas() -> None:
    async with running_replica() as one, running_replica() as two, routed(one.url, two.url) as at:
        source = RegionSource(settings(max_replicas=4), FakeDriver(2), at)
        assert await source.signals() is None  # nothing to compare with yet
        async with RequestLoad(at.url, clients=4, max_tokens=4) as load:
            await load.more(40)
        found = await source.signals()
        await source.close()
    assert found is not None
    assert found.requests_per_second
    assert found.output_tokens_per_s == pytest.approx(4 * found.requests_per_second, rel=0.05)
    assert found.slow_share == 0.0
    assert found.error_rate == 0.0


async def _says_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
    await writer.drain()
    writer.close()


async def test_a_replica_without_figures_means_no_signals_and_nothing_moves() -> None:
    server = await asyncio.start_server(_says_ok, "127.0.0.1", 0)
    mute = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, running_replica() as one, routed(one.url, mute) as at:
        source = RegionSource(settings(max_replicas=4), FakeDriver(2), at)
        for _ in range(3):
            assert await source.signals() is None
        at.set_replicas([one.url])  # the control: without it there are signals
        assert await source.signals() is None
        assert await source.signals() is not None
        await source.close()


async def test_measurements_and_decisions_are_shown_at_the_routers_metrics(tmp_path: Path) -> None:
    async with running_replica() as one, routed(one.url) as at:
        given = settings(replicas=1, max_replicas=4, interval_s=0.05)
        limits = scale_limits(given)
        assert limits is not None
        region = RegionScaler(given, limits, FakeDriver(1), at, tmp_path)
        assert at.more_metrics() == ""
        await region.scaler.check_and_scale()
        text = at.more_metrics()
        await region.close()
    assert 'bul_scaler_decisions_total{direction="hold"} 1' in text
    assert "bul_scaler_replicas 1" in text
    assert "bul_scaler_without_signals_total 1" in text
    assert "bul_scaler_cold_start_seconds 10" in text
