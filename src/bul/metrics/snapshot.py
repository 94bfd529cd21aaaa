"""The seven signals over a sliding window, as the scaling guide names them.

Refuses to turn "no data" into zero: a window without a finished request has no p95 (None), and
only counting itself can give a true zero. No I/O and no clock: the caller passes the time.

Why samples and not buckets: a window keeps at most `SAMPLES_MAX` finished requests, exactly; at
100 requests/s that is over a minute. Beyond that the window gets shorter, and rates are divided
by the time that is really covered, so they stay right.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

__all__ = ["SIGNAL_NAMES", "Finished", "Gauges", "Window", "quantile", "scaling_metrics"]

SAMPLES_MAX = 8192
WINDOW_S = 60.0
COVERED_S_MIN = 1.0
"""A rate over less than this says nothing yet."""

SIGNAL_NAMES = (
    "requests_per_second",
    "p95_latency",
    "cpu_utilization",
    "memory_utilization",
    "cache_hit_rate",
    "error_rate",
    "active_connections",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """One finished request. failed: a fault of ours (5xx or 429), not of the client.

    latency_s, ttft_s: None when there was no answer to time.
    """

    at_s: float
    failed: bool
    latency_s: float | None = None
    ttft_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Gauges:
    """What is read at the moment of a snapshot. Utilisations in [0, 1]; None for "no data"."""

    cpu_utilization: float | None = None
    memory_utilization: float | None = None
    active_connections: int | None = None


class Window:
    """The finished requests of the last `window_s` seconds. Not thread-safe."""

    def __init__(self, *, started_s: float, window_s: float = WINDOW_S) -> None:
        self._started_s = started_s
        self._window_s = window_s
        self._samples: collections.deque[Finished] = collections.deque(maxlen=SAMPLES_MAX)
        self._dropped_until_s = started_s

    def add(self, sample: Finished) -> None:
        """`sample.at_s` must not go backwards."""
        if len(self._samples) == SAMPLES_MAX:
            self._dropped_until_s = self._samples[0].at_s
        self._samples.append(sample)

    def samples(self, now_s: float) -> Sequence[Finished]:
        """Those in (now_s - window_s, now_s]; forgets older ones."""
        while self._samples and self._samples[0].at_s <= now_s - self._window_s:
            self._samples.popleft()
        return self._samples

    def covered_s(self, now_s: float) -> float:
        """How many seconds the samples stand for."""
        return min(self._window_s, now_s - max(self._started_s, self._dropped_until_s))


def scaling_metrics(window: Window, gauges: Gauges, now_s: float) -> dict[str, float | None]:
    """The guide's seven keys. p95_latency in milliseconds, rates and utilisations in [0, 1].

    cache_hit_rate: cached over all prompt tokens. Forgets samples that left the window.
    """
    samples = window.samples(now_s)
    covered_s = window.covered_s(now_s)
    latencies_s = [sample.latency_s for sample in samples if sample.latency_s is not None]
    p95_s = quantile(latencies_s, 0.95)
    prompt_tokens = sum(sample.prompt_tokens for sample in samples)
    cached_tokens = sum(sample.cached_tokens for sample in samples)
    failed = sum(sample.failed for sample in samples)
    return {
        "requests_per_second": len(samples) / covered_s if covered_s >= COVERED_S_MIN else None,
        "p95_latency": None if p95_s is None else p95_s * 1000.0,
        "cpu_utilization": gauges.cpu_utilization,
        "memory_utilization": gauges.memory_utilization,
        "cache_hit_rate": cached_tokens / prompt_tokens if prompt_tokens else None,
        "error_rate": failed / len(samples) if samples else None,
        "active_connections": gauges.active_connections,
    }


def quantile(values: Sequence[float], q: float) -> float | None:
    """The smallest value with at least a share `q` of all at or below it; None without values."""
    assert 0.0 < q <= 1.0, q
    if not values:
        return None
    return sorted(values)[math.ceil(q * len(values)) - 1]
