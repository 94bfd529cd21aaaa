"""A whole replica inside the test's own event loop: real sockets, real server, timed engine.

Refuses to wait for anything: `time_scale` is 0 unless the test says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence

from bul.blocks.text_chain import text_secret
from bul.cache.contract import Tier
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.config import KVCacheConfig, ServeConfig, TimedConfig
from bul.inference.runner import BatchingRunner
from bul.inference.timed import TimedCore
from bul.service.app import ReplicaApp
from bul.service.cache_events import BlockEvents
from bul.service.server import ReplicaServer, bind
from bul.tracing import Tracer

__all__ = ["INSTANT", "ReplicaUnderTest", "running_replica"]

INSTANT = TimedConfig(time_scale=0.0, block_bytes=256)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaUnderTest:
    """What a test may look at from inside while clients talk to `url`."""

    url: str
    app: ReplicaApp
    server: ReplicaServer
    core: TimedCore
    runner: BatchingRunner
    cache: UltraAdaptiveKVCacheEngine
    events: BlockEvents

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def raw(self, data: bytes, *, timeout_s: float = 20.0) -> bytes:
        """Send `data` as it is; everything that comes back until the server closes."""
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                with contextlib.suppress(ConnectionError):
                    writer.write(data)
                    await writer.drain()
                with contextlib.suppress(ConnectionError):
                    return await reader.read()
                return b""
            finally:
                writer.close()


@contextlib.asynccontextmanager
async def running_replica(
    serve: ServeConfig = ServeConfig(port=0),
    timed: TimedConfig = INSTANT,
    *,
    keys: Mapping[str, str] | None = None,
    resume_secret: str = "",
    core: TimedCore | None = None,
    tiers: Sequence[Tier] = (),
    cache_config: KVCacheConfig | None = None,
    tracer: Tracer | None = None,
) -> AsyncIterator[ReplicaUnderTest]:
    """Serve until the block ends; then drain for nothing and stop everything."""
    core = core or TimedCore(serve, timed)
    events = BlockEvents(secret=text_secret(serve.cache_secret))
    cache = UltraAdaptiveKVCacheEngine(
        cache_config,
        identity=core.identity,
        tiers=tiers,
        block_bytes=core.block_bytes,
        watcher=events.changed,
    )
    runner = BatchingRunner(
        core, cache, waiting_max=serve.waiting_max, request_deadline_s=serve.request_deadline_s
    )
    app = ReplicaApp(
        serve,
        keys=keys,
        resume_secret=resume_secret,
        cache=lambda: cache,
        events=events,
        tracer=tracer,
    )
    server = ReplicaServer(app, bind(serve, keys or {}))
    await server.start()
    app.attach(runner)
    try:
        yield ReplicaUnderTest(
            url=server.url,
            app=app,
            server=server,
            core=core,
            runner=runner,
            cache=cache,
            events=events,
        )
    finally:
        await server.stop(runner, 0.0)
        cache.close()
