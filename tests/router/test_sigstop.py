"""A real replica process stands still for four seconds (SIGSTOP), under requests and streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bul.testing.replica_set import ReplicaSet
from bul.testing.request_load import RequestLoad
from bul.testing.router_net import RouterNet

RATES = {"BUL_TIMED_DECODE_TOKENS_PER_S": "200", "BUL_CACHE_ENABLE_PERSISTENCE": "false"}
FROZEN_S = 4.0
OVER_SERVICE_S = 1.0
"""What a freeze may cost the slowest request beside its own service time."""


async def _freeze_one(
    net: RouterNet, folder: Path, frozen_s: float, **settings: Any
) -> tuple[list[str], float, float]:
    """What was lost, and the slowest answer before the freeze and after it began."""
    async with contextlib.AsyncExitStack() as stack:
        replicas = ReplicaSet(folder, stack, RATES)
        await replicas.start("a", "b")
        router = await net.router(*replicas.urls, **settings)
        async with RequestLoad(router.url, clients=6, max_tokens=8, stream_every=2) as load:
            await load.more(200)
            before_s = max(load.latencies_s)
            seen = len(load.latencies_s)
            pid = replicas.pid("b")
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(frozen_s)
            finally:
                os.kill(pid, signal.SIGCONT)
            await load.more(50)
        assert load.streams > 100
        return load.lost, before_s, max(load.latencies_s[seen:])


@pytest.mark.slow
async def test_nobody_waits_for_the_thaw(net: RouterNet, tmp_path: Path) -> None:
    lost, service_s, slowest_s = await _freeze_one(net, tmp_path, FROZEN_S)
    assert lost == []
    assert slowest_s <= service_s + OVER_SERVICE_S


@pytest.mark.slow
async def test_the_control_without_a_second_replica_somebody_does(
    net: RouterNet, tmp_path: Path
) -> None:
    off: Any = {"hedge_delay_min_s": 0.0, "resume_streams": False}
    _, _, slowest_s = await _freeze_one(net, tmp_path, FROZEN_S / 2, **off)
    assert slowest_s > FROZEN_S / 2 - 0.5
