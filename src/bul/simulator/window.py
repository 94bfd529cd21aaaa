"""The simulated region's own metrics: what a scaler would see, no more and no earlier.

Refuses to leak the future: a request's length counts towards output tokens only once it is
done, its TTFT only once its first token is out.
"""

from __future__ import annotations

import math
from collections import deque

from bul.scaling.signals import Signals
from bul.simulator.job import Job

__all__ = ["SignalWindow"]


class SignalWindow:
    """Counters of one tick, and quantiles over the last `ticks` of them."""

    __slots__ = (
        "_busy",
        "_cached",
        "_cached_share",
        "_delays",
        "_history",
        "_in_flight",
        "_matched",
        "_output",
        "_prompt",
        "_requests",
        "_slow",
        "_ttfts",
        "_waiting",
        "slo_ttft_s",
        "ticks",
    )

    def __init__(self, slo_ttft_s: float, ticks: int = 4) -> None:
        self.ticks = ticks
        self.slo_ttft_s = slo_ttft_s
        self._history: deque[tuple[list[float], list[float]]] = deque(maxlen=ticks)
        self._cached_share = 0.0
        self._reset()

    def _reset(self) -> None:
        self._ttfts: list[float] = []
        self._delays: list[float] = []
        self._requests = 0
        self._slow = 0
        self._prompt = self._matched = self._cached = 0
        self._output = 0
        self._busy = 0.0
        self._in_flight = 0.0
        self._waiting = 0.0

    def arrived(self, prompt_tokens: int) -> None:
        self._requests += 1
        self._prompt += prompt_tokens

    def first_token(self, job: Job) -> None:
        self._ttfts.append(job.first_token_s - job.arrived_s)
        self._slow += self._ttfts[-1] > self.slo_ttft_s
        self._delays.append(job.started_s - job.arrived_s)
        self._matched += job.prompt_tokens
        self._cached += job.cached_tokens

    def done(self, output_tokens: int) -> None:
        self._output += output_tokens

    def occupied(self, busy_s: float, in_flight_s: float, waiting_s: float) -> None:
        """Add time integrals of busy replicas, requests in flight and requests waiting."""
        self._busy += busy_s
        self._in_flight += in_flight_s
        self._waiting += waiting_s

    def close(
        self, now_s: float, tick_s: float, ready: int, pending: int, ttft_idle_ms: float
    ) -> Signals:
        """End the tick at `now_s` and say what it showed.

        What caches hold of a prompt shows when its prefill begins; of those that have just arrived
        the same share is expected (a moving mean of some ten ticks).
        """
        self._history.append((self._ttfts, self._delays))
        if self._matched:
            self._cached_share += 0.1 * (self._cached / self._matched - self._cached_share)
        signals = Signals(
            measured_at_s=now_s,
            replicas_ready=ready,
            replicas_pending=pending,
            requests_per_second=self._requests / tick_s,
            ttft_p95_ms=self._quantile_ms(0),
            slow_share=self._slow / max(len(self._ttfts), 1),
            queue_delay_ms=self._quantile_ms(1),
            utilization=min(self._busy / (tick_s * max(ready, 1)), 1.0),
            in_flight=self._in_flight / tick_s,
            waiting=self._waiting / tick_s,
            prefill_tokens_per_s=self._prompt * (1.0 - self._cached_share) / tick_s,
            output_tokens_per_s=self._output / tick_s,
            cache_hit_rate=self._cached_share,
            error_rate=0.0,
            ttft_idle_ms=ttft_idle_ms,
        )
        self._reset()
        return signals

    def _quantile_ms(self, column: int) -> float:
        values = sorted(value for tick in self._history for value in tick[column])
        if not values:
            return 0.0  # A window without requests is fast, not unknown: the region was reachable.
        return values[min(math.ceil(0.95 * len(values)) - 1, len(values) - 1)] * 1000.0
