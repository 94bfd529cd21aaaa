"""What the runner counts and measures about itself. Refuses to guess: unknown rates are 0.0."""

from __future__ import annotations

import dataclasses

__all__ = ["RunnerCounters", "TokenRate"]

_DECAY = 0.95
"""Per measurement: the last 20 or so calls make the rate."""


class TokenRate:
    """Tokens per second of work, exponentially weighted; waiting does not count."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def per_s(self) -> float:
        return self._tokens / self._seconds if self._seconds > 0.0 else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """`tokens` were made in `seconds` of work."""
        self._tokens = self._tokens * _DECAY + tokens
        self._seconds = self._seconds * _DECAY + seconds


@dataclasses.dataclass(slots=True)
class RunnerCounters:
    """Since the start; written by the runner's thread, read by any."""

    requests_total: int = 0
    cancelled_total: int = 0
    deadline_total: int = 0
    core_errors_total: int = 0
    cache_errors_total: int = 0
    cache_impatient_total: int = 0
    """Matches given up because they did not settle in time."""
    prefill_tokens_total: int = 0
    cached_tokens_total: int = 0
    output_tokens_total: int = 0
    decode_steps_total: int = 0
    blocks_stored_total: int = 0
