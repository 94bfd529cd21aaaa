"""Liveness and readiness: is the engine's loop making progress, and may new work come in?

Refuses to call overload a disease: a busy loop that turns is healthy, however long its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from bul.clock import Clock
from bul.errors import BulError, Overloaded
from bul.inference.contract import GenerateRequest, Runner, Sampling

__all__ = ["Health"]

DEEP_EVERY_S = 1.0
"""A deep probe's result is kept this long: nobody can use it to keep the engine busy."""
DEEP_PROMPT = "ping"


class Health:
    """`runner` is None until the model is loaded; `draining` says that the end has begun."""

    def __init__(self, *, stuck_after_s: float, clock: Clock) -> None:
        self.runner: Runner | None = None
        self.draining = False
        self._stuck_after_s = stuck_after_s
        self._clock = clock
        self._lock = asyncio.Lock()
        self._deep = ""
        self._deep_until_s = float("-inf")

    def ready(self) -> tuple[bool, dict[str, str]]:
        """Whether new requests are taken, and "ready", "loading", "draining" or "stuck"."""
        if self.draining:
            return False, {"status": "draining"}
        if self.runner is None:
            return False, {"status": "loading"}
        if self._stuck():
            return False, {"status": "stuck"}
        return True, {"status": "ready"}

    async def live(self, *, deep: bool) -> tuple[bool, dict[str, str]]:
        """Whether this process is worth keeping. `deep` generates one token, at most once a
        second whoever asks.
        """
        if self.runner is None:
            return True, {"status": "loading"}
        body = {"status": "ok", "engine": self.runner.core.engine_name}
        if self._stuck():
            return False, body | {"status": "stuck"}
        if not deep:
            return True, body
        outcome = await self._probe(self.runner)
        healthy = outcome in ("ok", "overloaded")
        return healthy, body | {"status": "ok" if healthy else "stuck", "deep": outcome}

    def gauges(self) -> dict[str, float]:
        """Whether it is ready, and how busy the engine's loop is, by metric name."""
        ready = {"ready": float(self.ready()[0])}
        if self.runner is None:
            return ready
        load = self.runner.load()
        return ready | {
            "requests_running": load.running,
            "requests_waiting": load.waiting,
            "slots": load.slots,
            "queue_delay_seconds": load.queue_delay_s,
            "loop_age_seconds": load.loop_age_s,
            "prefill_tokens_per_second": load.prefill_tokens_per_s,
            "decode_tokens_per_second": load.decode_tokens_per_s,
        }

    def _stuck(self) -> bool:
        return self.runner is not None and self.runner.load().loop_age_s > self._stuck_after_s

    async def _probe(self, runner: Runner) -> str:
        """One of "ok", "overloaded", "timeout" and "failed"."""
        async with self._lock:
            if self._clock.now_s() >= self._deep_until_s:
                self._deep = await self._generate_one(runner)
                self._deep_until_s = self._clock.now_s() + DEEP_EVERY_S
            return self._deep

    async def _generate_one(self, runner: Runner) -> str:
        request = GenerateRequest(
            request_id="health",
            tokens=runner.core.tokenize(DEEP_PROMPT, special=False),
            sampling=Sampling(max_tokens=1),
            use_cache=False,
        )
        deltas = runner.generate(request)
        try:
            async with asyncio.timeout(self._stuck_after_s):
                async for _ in deltas:
                    pass
        except Overloaded:
            return "overloaded"
        except TimeoutError:
            return "timeout"
        except BulError:
            return "failed"
        finally:
            if isinstance(deltas, AsyncGenerator):
                with contextlib.suppress(BulError):
                    await deltas.aclose()
        return "ok"
