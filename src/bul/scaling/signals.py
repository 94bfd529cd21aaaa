"""What the scaler sees, and what it may not believe: missing, NaN, stale or time-travelling values.

Refuses to turn "no data" into zero: a missing value is None, and a policy that needs it holds.
"""

from __future__ import annotations

import math

import msgspec

__all__ = ["VALUE_MAX", "Signals", "doubt"]


class Signals(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One region's measurements over the last window. None means "no data".

    measured_at_s: end of the window, on the clock that `decide` is called with.
    replicas_ready, replicas_pending: from the driver; pending ones are started but not ready.
    requests_per_second: arrivals. ttft_p95_ms: time to first token. latency_p95_ms: of whole
    requests. utilization: share of time in which an engine is busy, in [0, 1].
    in_flight: running + waiting requests of the whole region, mean over the window.
    waiting: those without a slot. queue_delay_ms: p95 wait for a slot.
    prefill_tokens_per_s: prompt tokens arriving that no cache holds. output_tokens_per_s: decoded.
    slow_share: share of requests whose first token came later than the target, in [0, 1].
    ttft_idle_ms: p95 of the same prompts on an idle replica, measured or from the profile.
    """

    measured_at_s: float
    replicas_ready: int
    replicas_pending: int = 0
    requests_per_second: float | None = None
    ttft_p95_ms: float | None = None
    latency_p95_ms: float | None = None
    slow_share: float | None = None
    utilization: float | None = None
    cpu_utilization: float | None = None
    memory_utilization: float | None = None
    cache_hit_rate: float | None = None
    error_rate: float | None = None
    active_connections: float | None = None
    in_flight: float | None = None
    waiting: float | None = None
    queue_delay_ms: float | None = None
    prefill_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    ttft_idle_ms: float | None = None


VALUE_MAX = 1e12
"""No rate, count or latency of a region is this large; what is, is a broken exporter."""


def doubt(signals: Signals | None, now_s: float, stale_s: float, needs: tuple[str, ...]) -> str:
    """Why these signals must not move anything; "" when they may.

    `needs` are the fields the policy reads. A clock that jumped shows as an age that is
    negative or beyond `stale_s`.
    """
    if signals is None:
        return "no data: the metrics source did not answer"
    age_s = now_s - signals.measured_at_s
    if not math.isfinite(age_s) or age_s < -1.0:
        return "clock jumped: the signals come from the future"
    if age_s > stale_s:
        return f"stale data: {age_s:.0f} s old, {stale_s:.0f} s allowed"
    if signals.replicas_ready < 0 or signals.replicas_pending < 0:
        return "bad data: a negative number of replicas"
    for name in needs:
        value = getattr(signals, name)
        if value is None:
            return f"no data: {name} is missing"
        if not math.isfinite(value) or not 0 <= value <= VALUE_MAX:
            return f"bad data: {name} is {value}"
    return ""
