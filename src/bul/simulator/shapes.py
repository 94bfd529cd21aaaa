"""Synthetic traffic for the guide's three scenarios, named as such; no trace stands behind it.

Refuses to pass for measured: every shape's name begins with `synthetic-`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from bul.errors import ConfigError
from bul.simulator.arrivals import Floats, RateWindows

__all__ = ["SHAPES", "shape"]

WINDOW_S = 60.0
PROMPT_TOKENS, OUTPUT_TOKENS, BURSTINESS = 800.0, 150.0, 1.5
DAY_S = 86_400.0


def _spikes(at_s: Floats) -> Floats:
    """8 requests/s, and three times that for ten minutes every two hours."""
    return np.where(at_s % 7200.0 < 600.0, 24.0, 8.0)


def _constant(at_s: Floats) -> Floats:
    """25 requests/s, always."""
    return np.full(len(at_s), 25.0)


def _variable(at_s: Floats) -> Floats:
    """A day's wave between 3 and 21 requests/s with a ripple of an hour."""
    day = 12.0 - 8.0 * np.cos(2 * np.pi * at_s / DAY_S)
    return np.asarray(day + np.sin(2 * np.pi * at_s / 3600.0), dtype=np.float64)


SHAPES: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {
        "synthetic-traffic-spikes": _spikes,
        "synthetic-constant-high": _constant,
        "synthetic-variable": _variable,
    }
)


def shape(name: str, days: float) -> RateWindows:
    """The rates of the shape `name` over `days`. Raises ConfigError for an unknown name."""
    if name not in SHAPES:
        raise ConfigError(f"unknown shape: {name}", hint=f"known: {', '.join(SHAPES)}")
    at_s = np.arange(0.0, max(days * DAY_S, 2 * WINDOW_S), WINDOW_S)
    same = np.ones(len(at_s))
    return RateWindows(
        window_s=WINDOW_S,
        at_s=at_s,
        requests_per_second=SHAPES[name](at_s),
        cv=BURSTINESS * same,
        prompt_tokens_mean=PROMPT_TOKENS * same,
        output_tokens_mean=OUTPUT_TOKENS * same,
    )
