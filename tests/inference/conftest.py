"""Runners that are closed when their test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from bul.blocks.prefix import PrefixCache
from bul.inference.contract import ModelCore
from bul.inference.runner import BatchingRunner


class StartRunner(Protocol):
    def __call__(
        self,
        core: ModelCore,
        cache: PrefixCache | None = None,
        *,
        waiting_max: int = 256,
        request_deadline_s: float = 60.0,
        cache_generated: bool = False,
        heartbeat_s: float = 1.0,
    ) -> BatchingRunner: ...


@pytest.fixture
async def start() -> AsyncIterator[StartRunner]:
    started: list[BatchingRunner] = []

    def start_runner(
        core: ModelCore,
        cache: PrefixCache | None = None,
        *,
        waiting_max: int = 256,
        request_deadline_s: float = 60.0,
        cache_generated: bool = False,
        heartbeat_s: float = 1.0,
    ) -> BatchingRunner:
        runner = BatchingRunner(
            core,
            cache,
            waiting_max=waiting_max,
            request_deadline_s=request_deadline_s,
            cache_generated=cache_generated,
            heartbeat_s=heartbeat_s,
        )
        started.append(runner)
        return runner

    yield start_runner
    for runner in started:
        await runner.close(0.0)
