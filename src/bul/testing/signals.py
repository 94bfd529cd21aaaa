"""Made signals for policies: a calm region, changed by keyword. Refuses to hide a clock."""

from __future__ import annotations

from typing import Any

from bul.scaling.signals import Signals

__all__ = ["signals_at"]


def signals_at(now_s: float, ready: int = 4, **changed: Any) -> Signals:
    """A calm region of `ready` replicas, each half at work."""
    values: dict[str, Any] = {
        "replicas_pending": 0,
        "requests_per_second": 10.0,
        "ttft_p95_ms": 300.0,
        "slow_share": 0.0,
        "utilization": 0.5,
        "in_flight": 30.0,
        "waiting": 0.0,
        "queue_delay_ms": 0.0,
        "prefill_tokens_per_s": 10_000.0,
        "output_tokens_per_s": 1_000.0,
        "error_rate": 0.0,
        "ttft_idle_ms": 100.0,
    } | changed
    return Signals(measured_at_s=now_s, replicas_ready=ready, **values)
