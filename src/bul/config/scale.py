"""`[scale]`: how many replicas a region may have, and who decides.

Refuses values out of range with a message that names the field and the legal range.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from bul.config.checks import in_range, one_of, whole

__all__ = ["SCENARIOS", "ScaleConfig"]

POLICIES = ("adaptive", "guide", "hpa", "kpa", "ray", "keda", "fixed")
SCENARIOS = ("", "traffic-spikes", "constant-high", "variable")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScaleConfig:
    """`[scale]`: the autoscaler of `bul up`; off while neither a maximum nor a scenario is given.

    scenario: one of the guide's; brings limits, thresholds and cooldowns, which the fields below
    overrule. min_replicas 0: the scenario's, else up.replicas. max_replicas 0: the scenario's.
    slo_ttft_ms: a first token later than this is slow. violation_max: the share of slow requests
    that `adaptive` is asked to hold. advise: decide and write down, do nothing. interval_s:
    between two decisions. cooldown_up_s, cooldown_down_s below 0: the policy's own. hold_s:
    without a need for so long, plus 2.5 cold starts, `adaptive` comes down. work_memory_s: of its
    mean of the work. stale_s: older measurements move nothing. target: of hpa, kpa, ray and keda,
    0 for their own. key_file: holds the operator's key, with which replicas are asked for their
    figures when there are [keys]. price_per_replica_hour: shows what the region costs; 0 for not.
    """

    policy: Literal["adaptive", "guide", "hpa", "kpa", "ray", "keda", "fixed"] = "adaptive"
    scenario: Literal["", "traffic-spikes", "constant-high", "variable"] = ""
    min_replicas: int = 0
    max_replicas: int = 0
    slo_ttft_ms: float = 500.0
    violation_max: float = 0.01
    advise: bool = False
    interval_s: float = 15.0
    cooldown_up_s: float = -1.0
    cooldown_down_s: float = -1.0
    hold_s: float = 300.0
    work_memory_s: float = 20.0
    stale_s: float = 60.0
    target: float = 0.0
    key_file: str = ""
    price_per_replica_hour: float = 0.0

    def __post_init__(self) -> None:
        one_of("policy", self.policy, POLICIES)
        one_of("scenario", self.scenario, SCENARIOS)
        whole("max_replicas", self.max_replicas, 0, 1000)
        whole("min_replicas", self.min_replicas, 0, self.max_replicas or 1000)
        in_range("slo_ttft_ms", self.slo_ttft_ms, 1, 600_000)
        in_range("violation_max", self.violation_max, 0.0001, 0.5)
        in_range("interval_s", self.interval_s, 0.05, 600)
        in_range("cooldown_up_s", self.cooldown_up_s, -1, 86_400)
        in_range("cooldown_down_s", self.cooldown_down_s, -1, 86_400)
        in_range("work_memory_s", self.work_memory_s, 0.1, 3600)
        in_range("hold_s", self.hold_s, 0, 86_400)
        in_range("stale_s", self.stale_s, 1, 3600)
        in_range("target", self.target, 0, 1e6)
        in_range("price_per_replica_hour", self.price_per_replica_hour, 0, 1e9)
