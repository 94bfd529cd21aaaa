"""One replica's own figures, out of the text of its `/metrics`.

Refuses to fill gaps: a replica that does not show a figure is one that cannot be measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

__all__ = ["ReplicaFigures", "figures_of"]

LINES_MAX = 20_000
TTFT = 'bul_time_to_first_token_seconds_bucket{le="'


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaFigures:
    """started_s: of the process, since the epoch; tells its lives apart. The rates are those of
    the engine while it works, 0 while unknown. The token and request counts are since the start.
    ttft: (upper bound in seconds, answers up to it), the last bound infinite.
    """

    started_s: float
    slots: float
    running: float
    waiting: float
    queue_delay_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    finished: float
    prompt_tokens: float
    cached_tokens: float
    output_tokens: float
    ttft: tuple[tuple[float, float], ...]


_NAMES = {
    "started_s": "process_start_time_seconds",
    "slots": "bul_slots",
    "running": "bul_requests_running",
    "waiting": "bul_requests_waiting",
    "queue_delay_s": "bul_queue_delay_seconds",
    "prefill_tokens_per_s": "bul_prefill_tokens_per_second",
    "decode_tokens_per_s": "bul_decode_tokens_per_second",
    "finished": "bul_request_duration_seconds_count",
    "prompt_tokens": "bul_prompt_tokens_total",
    "cached_tokens": "bul_prompt_tokens_cached_total",
    "output_tokens": "bul_output_tokens_total",
}


def figures_of(text: str) -> ReplicaFigures:
    """Read Prometheus' text format. Raises ValueError when a figure is missing or no number."""
    found: dict[str, float] = {}
    ttft: list[tuple[float, float]] = []
    for line in text.split("\n", LINES_MAX)[:LINES_MAX]:
        name, _, value = line.rpartition(" ")
        if name.startswith(TTFT):
            ttft.append((float(name[len(TTFT) :].partition('"')[0]), float(value)))
        elif name.isidentifier():
            found[name] = float(value)
    return ReplicaFigures(ttft=_rising(ttft), **_named(found))


def _named(found: Mapping[str, float]) -> dict[str, float]:
    values = {field: found.get(name, math.nan) for field, name in _NAMES.items()}
    for field, value in values.items():
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{_NAMES[field]} is missing or not a number")
    return values


def _rising(ttft: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    if not ttft or ttft[-1][0] != math.inf or ttft != sorted(ttft):
        raise ValueError("the times to the first token are missing or in disorder")
    return tuple(ttft)
