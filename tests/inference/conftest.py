"""Runners that are closed when their test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from bul.blocks.prefix import PrefixCache
from bul.config import ServeConfig
from bul.inference.contract import ModelCore
from bul.inference.embedded import EmbeddedCore
from bul.inference.runner import BatchingRunner
from bul.testing.tiny_gguf import write_tiny_gguf


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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


class MakeCore(Protocol):
    def __call__(
        self, *, slots: int = 4, context_tokens: int = 1024, threads: int = 1
    ) -> EmbeddedCore: ...


@pytest.fixture
def make_core(tiny_model: Path) -> Iterator[MakeCore]:
    """Embedded engines on the tiny model, closed when the test ends."""
    made: list[EmbeddedCore] = []

    def make(*, slots: int = 4, context_tokens: int = 1024, threads: int = 1) -> EmbeddedCore:
        serve = ServeConfig(slots=slots, context_tokens=context_tokens, threads=threads)
        made.append(EmbeddedCore(tiny_model, serve, digests=tiny_model.parent / "digests"))
        return made[-1]

    yield make
    for core in made:
        core.close()


@pytest.fixture
def core(make_core: MakeCore) -> EmbeddedCore:
    return make_core()
