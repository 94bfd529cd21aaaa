"""A real Envoy in front: replicas come, go and restart under load, and nothing is lost."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from bul.testing.envoy import running_envoy
from bul.testing.nginx import free_port
from bul.testing.replica_set import ReplicaSet
from bul.testing.request_load import RequestLoad
from bul.testing.waiting import eventually

pytestmark = pytest.mark.nightly

FAST = {"BUL_TIMED_DECODE_TOKENS_PER_S": "100"}


async def test_a_replica_is_added_and_one_removed_under_load(tmp_path: Path) -> None:
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        replicas = ReplicaSet(tmp_path, stack, FAST)
        await replicas.start("a", "b", "c")
        envoy = await stack.enter_async_context(running_envoy(tmp_path, port, replicas.urls))

        async def answers() -> bool:
            async with RequestLoad(envoy.url, clients=1, max_tokens=1) as load:
                await load.more(1)
            return not load.lost

        await eventually("an answer", answers)
        async with RequestLoad(envoy.url, clients=6, max_tokens=8, stream_every=2) as load:
            await load.more(60)
            await replicas.start("d")
            envoy.serve(replicas.urls)
            await load.more(60)
            replicas.forget("a")
            envoy.serve(replicas.urls)
            await load.more(30)
            await replicas.remove("a")
            await replicas.restart_in_place("b")
            await load.more(60)
        assert load.lost == []
        assert load.streams > 50
