"""A fixed fleet under a trace: what routing and eviction do to cached tokens, TTFT and balance.

Refuses a trace without blocks to claim a hit: what has no block ids is computed whole.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bul.cache.replay_trace import Trace
from bul.scaling.bounds import Bounds
from bul.scaling.rules import Fixed, RuleState
from bul.simulator.arrivals import Arrivals, arrivals_of_trace
from bul.simulator.cluster import Region
from bul.simulator.replica import PROFILES, ReplicaProfile
from bul.simulator.routing import Routing

__all__ = ["FleetResult", "simulate_region"]

TICK_S = 3600.0
"""Nothing scales here, so nobody has to look often."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FleetResult:
    """cached_token_share: of all prompt tokens. in_flight_mean: per replica, over the run.

    in_flight_max_over_mean: the busiest replica's mean against the mean of all; 1 is even.
    """

    requests: int
    prompt_tokens: int
    cached_tokens: int
    ttft_p50_ms: float
    ttft_p95_ms: float
    in_flight_mean: tuple[float, ...]

    @property
    def cached_token_share(self) -> float:
        return self.cached_tokens / max(self.prompt_tokens, 1)

    @property
    def in_flight_max_over_mean(self) -> float:
        mean = sum(self.in_flight_mean) / len(self.in_flight_mean)
        return max(self.in_flight_mean) / mean if mean else 1.0


def simulate_region(
    trace: Trace | Arrivals,
    replicas: int,
    policy: str,
    eviction: str = "lru",
    capacity_blocks: int = 0,
    profile: ReplicaProfile = PROFILES["8b"],
    seed: int = 0,
    *,
    residency_tokens: int | None = None,
    block_events: bool = True,
) -> FleetResult:
    """Play `trace` over `replicas`, routed by `policy` (of `routing.ROUTES`).

    capacity_blocks: of each replica, 0 for no cache. residency_tokens: how much the router
    believes a replica to keep; None: what it does keep. block_events: replicas tell what they
    keep. The same arguments give the same result.
    """
    arrivals = arrivals_of_trace(trace) if isinstance(trace, Trace) else trace
    block_tokens = arrivals.block_tokens or 1
    routing = Routing(
        policy=policy,
        eviction=eviction,
        capacity_blocks=capacity_blocks if arrivals.paths else 0,
        block_tokens=block_tokens,
        residency_tokens=(
            capacity_blocks * block_tokens if residency_tokens is None else residency_tokens
        ),
        block_events=block_events,
        seed=seed,
    )
    fixed = Fixed(bounds=Bounds(min_replicas=replicas, max_replicas=replicas), replicas=replicas)
    region = Region(
        profile,
        fixed,
        RuleState(),
        replicas=replicas,
        cold_start_s=0.0,
        tick_s=TICK_S,
        routing=routing,
    )
    report = region.run(arrivals)
    p50_s, p95_s = np.quantile(report.ttft_s, (0.5, 0.95)).tolist()
    lasted_s = max(float(arrivals.at_s[-1] - arrivals.at_s[0]), 1e-9)
    return FleetResult(
        requests=len(arrivals),
        prompt_tokens=report.prompt_tokens,
        cached_tokens=report.cached_tokens,
        ttft_p50_ms=p50_s * 1000.0,
        ttft_p95_ms=p95_s * 1000.0,
        in_flight_mean=tuple(total / lasted_s for total in report.in_flight_s),
    )
