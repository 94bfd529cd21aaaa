"""What a run of a region showed, and the figures taken from it.

Refuses to forget a request: one that never got its first token counts as slow.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bul.scaling.decision import Decision, Direction
from bul.simulator.arrivals import Floats

__all__ = ["RegionReport", "Step"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One decision that changed something, for history and plots."""

    at_s: float
    decision: Decision
    replicas_before: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RegionReport:
    """What a run showed. arrived_s ascends, ttft_s is parallel to it: inf where unfinished.

    replica_seconds: billed in each tick of `tick_s`, starts and drains included. prompt_tokens,
    cached_tokens: of all prompts, and what caches held of them. in_flight_s: per replica that ever
    was, the integral of its requests under way.
    """

    arrived_s: Floats
    ttft_s: Floats
    tick_s: float
    replica_seconds: Floats
    steps: tuple[Step, ...]
    replicas_max: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    in_flight_s: tuple[float, ...] = ()

    def violation_share(self, slo_ttft_s: float) -> float:
        """Share of requests whose first token came later than the SLO."""
        return float(np.mean(self.ttft_s > slo_ttft_s)) if len(self.ttft_s) else 0.0

    @property
    def replica_hours(self) -> float:
        return float(self.replica_seconds.sum()) / 3600.0

    def part(self, start_s: float, end_s: float) -> RegionReport:
        """The same run, seen from `start_s` up to `end_s` only."""
        keep = slice(*np.searchsorted(self.arrived_s, (start_s, end_s)))
        first, last = int(start_s // self.tick_s), int(end_s // self.tick_s)
        return dataclasses.replace(
            self,
            arrived_s=self.arrived_s[keep],
            ttft_s=self.ttft_s[keep],
            replica_seconds=self.replica_seconds[first:last],
            steps=tuple(step for step in self.steps if start_s <= step.at_s < end_s),
        )

    def count(self, direction: Direction) -> int:
        return sum(step.decision.direction is direction for step in self.steps)

    def reversals(self, within_s: float = 600.0) -> int:
        """Changes of direction less than `within_s` after the one before."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return sum(
            a.decision.direction is not b.decision.direction and b.at_s - a.at_s < within_s
            for a, b in pairs
        )
