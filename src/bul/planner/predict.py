"""What a fleet of N replicas makes of a workload, by the simulator: waiting included.

Refuses to flatter: the first part of a run, when everything is still empty, does not count; and
of a large fleet a slice of `FLEET_SIMULATED_MAX` replicas is simulated at its share of the rate,
which waits a little longer than the whole would, since it pools less.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from bul.scaling.bounds import Bounds
from bul.scaling.registry import make_policy, make_state
from bul.simulator.arrivals import Arrivals, Floats, Ints
from bul.simulator.cluster import Region
from bul.simulator.replica import ReplicaProfile

__all__ = ["Prediction", "Workload", "least_replicas", "output_rate", "predict"]

FLEET_SIMULATED_MAX = 16
REQUESTS_SIMULATED = 40_000
WARM_SHARE = 0.2
"""Of a run that is played and not counted."""
BLOCK_TOKENS = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One kind of request. shared_prefix: share of a prompt's tokens that others had before, in
    [0, 1]. arrival_cv: 1 for independent arrivals. length_cv: spread of lengths, 0 for none.
    """

    requests_per_second: float
    prompt_tokens: int
    output_tokens: int
    shared_prefix: float = 0.0
    arrival_cv: float = 1.0
    length_cv: float = 0.7

    @property
    def cached_tokens(self) -> int:
        """Of a mean prompt, in full blocks; the last token is always computed."""
        shared = int(self.prompt_tokens * self.shared_prefix)
        return min(shared, self.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS

    def computed_tokens(self, *, cache: bool) -> int:
        """Prefill tokens of a mean request."""
        return self.prompt_tokens - (self.cached_tokens if cache else 0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Time to the first token in milliseconds; busy: share of time that a replica computes."""

    replicas: int
    ttft_p50_ms: float
    ttft_p95_ms: float
    busy: float


def least_replicas(workload: Workload, profile: ReplicaProfile, *, cache: bool) -> int:
    """Fewer cannot keep up, whatever the latency: prefill and decode share one engine.

    A sequence decodes at 1 / (base + each * slots) tokens/s beside `slots` others, and the
    prefill of all takes its part of the same engine's time.
    """
    work_s = workload.requests_per_second * _work_s(workload, profile, cache=cache)
    return max(1, math.ceil(work_s))


def predict(
    workload: Workload, profile: ReplicaProfile, *, replicas: int, cache: bool, seed: int
) -> Prediction:
    """One simulated run, the same for the same seed."""
    fleet = min(replicas, FLEET_SIMULATED_MAX)
    rate = workload.requests_per_second * fleet / replicas
    arrivals = _arrivals(dataclasses.replace(workload, requests_per_second=rate), cache, seed)
    region = Region(
        profile,
        make_policy("fixed", bounds=Bounds(min_replicas=1, max_replicas=fleet), replicas=fleet),
        make_state("fixed"),
        replicas=fleet,
        cold_start_s=0.0,
    )
    report = region.run(arrivals)
    counted = report.ttft_s[int(len(report.ttft_s) * WARM_SHARE) :] * 1000.0
    work_s = _work_s(workload, profile, cache=cache)
    return Prediction(
        replicas=replicas,
        ttft_p50_ms=float(np.quantile(counted, 0.5)),
        ttft_p95_ms=float(np.quantile(counted, 0.95)),
        busy=min(1.0, workload.requests_per_second * work_s / replicas),
    )


def _work_s(workload: Workload, profile: ReplicaProfile, *, cache: bool) -> float:
    """Engine seconds of one mean request in a full batch."""
    prefill_s = workload.computed_tokens(cache=cache) / profile.prefill_tokens_per_s
    return prefill_s + workload.output_tokens / output_rate(workload, profile)


def output_rate(workload: Workload, profile: ReplicaProfile) -> float:
    """Tokens/s of one replica with a full batch of such requests, half way through them."""
    return profile.output_tokens_per_s(workload.prompt_tokens + workload.output_tokens / 2)


def _arrivals(workload: Workload, cache: bool, seed: int) -> Arrivals:
    rng = np.random.default_rng(seed)
    shape = 1.0 / workload.arrival_cv**2
    gaps = rng.gamma(shape, 1.0 / (workload.requests_per_second * shape), size=REQUESTS_SIMULATED)
    prompts = _lengths(workload.prompt_tokens, workload.length_cv, rng)
    if cache:
        shared = (prompts * workload.shared_prefix).astype(np.int64)
        prompts = prompts - np.minimum(shared, prompts - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    return Arrivals(
        at_s=np.cumsum(gaps),
        prompt_tokens=prompts,
        output_tokens=_lengths(workload.output_tokens, workload.length_cv, rng),
    )


def _lengths(mean: int, spread: float, rng: np.random.Generator) -> Ints:
    if spread <= 0.0:
        return np.full(REQUESTS_SIMULATED, mean, dtype=np.int64)
    sigma2 = math.log1p(spread**2)
    drawn: Floats = rng.lognormal(
        math.log(max(mean, 1)) - sigma2 / 2, math.sqrt(sigma2), REQUESTS_SIMULATED
    )
    return np.maximum(np.rint(drawn), 1).astype(np.int64)
