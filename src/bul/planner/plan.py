"""From a load and a target to a fleet, its cost and its settings. Pure: the simulator is passed in.

Refuses a bare number: every figure says whether it was asked, measured, simulated, taken from the
guide or assumed; options that fail the target stay in the list with the reason.

The search, for a rate and with or without the cache: start from the fewest replicas that keep up
with the work, grow by a tenth until the simulated p95 holds the target, then halve the way back.
Above that come spares: one, and one more for each twenty, so that a restart or a death is not an
overload.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from bul.planner.phases import Phase, Scenario, phase_for
from bul.planner.predict import Prediction, Workload, least_replicas, output_rate
from bul.simulator.replica import ReplicaProfile

__all__ = [
    "Figure",
    "Fleet",
    "Option",
    "Plan",
    "Question",
    "cost_per_day",
    "cost_per_million_tokens",
    "make_plan",
    "mean_rate",
    "needed",
]

Predict = Callable[[Workload, ReplicaProfile, int, bool], Prediction]
"""(workload, profile, replicas, cache) -> what the simulator says."""

REPLICAS_MAX = 5000
REPLICAS_PER_SPARE = 20
OPTION_FACTORS = (1.0, 1.1, 1.25, 1.5)
COOLDOWN_DOWN_S = 600.0
DAY_S = 86_400.0
P95_OF_LENGTHS = 2.2
"""Times the mean: the 95th percentile of a log-normal length with a spread of 0.7."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What the operator asks. slo_p95_ms: of the time to the first token."""

    workload: Workload
    slo_p95_ms: float
    phase: Phase
    scenario: Scenario
    profile: ReplicaProfile
    price_per_replica_hour: float = 0.0
    cold_start_s: float = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """source: asked, measured, simulated, guide or assumed."""

    name: str
    value: float | str
    unit: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One size at the asked rate; feasible only if `reasons` is empty."""

    cache: bool
    replicas: int
    ttft_p50_ms: float
    ttft_p95_ms: float
    busy: float
    cost_per_day: float
    reasons: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        return not self.reasons


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Limits for the scaler, spares included; mean: what the scenario's day pays for."""

    replicas_min: int
    replicas_max: int
    spares: int
    mean: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The answer. fleet: None if no size holds the target, with or without the cache.

    cache: `KVCacheConfig` fields to deploy. findings: what the operator should know, one line each.
    """

    question: Question
    fleet: Fleet | None
    fleet_without_cache: Fleet | None
    options: tuple[Option, ...]
    figures: tuple[Figure, ...]
    cache: Mapping[str, object]
    findings: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        return self.fleet is not None


def make_plan(question: Question, predict: Predict) -> Plan:
    """Some tens of simulated runs; deterministic if `predict` is."""
    with_cache = _fleet(question, predict, cache=True)
    without = _fleet(question, predict, cache=False)
    options = tuple(_options(question, predict))
    return Plan(
        question=question,
        fleet=with_cache,
        fleet_without_cache=without,
        options=options,
        figures=tuple(_figures(question, with_cache, without)),
        cache=_cache(question),
        findings=tuple(_findings(question, with_cache)),
    )


def needed(question: Question, predict: Predict, *, factor: float, cache: bool) -> int | None:
    """The fewest replicas whose p95 holds the target at `factor` times the rate; None: none do."""
    rate = question.workload.requests_per_second * factor
    workload = dataclasses.replace(question.workload, requests_per_second=rate)
    if _idle_ms(question, cache=cache) > question.slo_p95_ms:
        return None

    def holds(replicas: int) -> bool:
        found = predict(workload, question.profile, replicas, cache)
        return found.ttft_p95_ms <= question.slo_p95_ms

    high = least_replicas(workload, question.profile, cache=cache)
    low = high - 1
    while not holds(high):
        low, high = high, math.ceil(high * 1.1) + 1
        if high > REPLICAS_MAX:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _idle_ms(question: Question, *, cache: bool) -> float:
    """p95 on an idle replica: long prompts, nobody else."""
    spread = P95_OF_LENGTHS if question.workload.length_cv > 0 else 1.0
    tokens = question.workload.computed_tokens(cache=cache) * spread
    return question.profile.idle_ttft_s(tokens) * 1000.0


def _spares(replicas: int, phase: Phase) -> int:
    return 0 if phase.number == 1 else math.ceil(replicas / REPLICAS_PER_SPARE)


def _fleet(question: Question, predict: Predict, *, cache: bool) -> Fleet | None:
    scenario, phase = question.scenario, question.phase
    peak = needed(question, predict, factor=scenario.peak, cache=cache)
    if peak is None:
        return None
    low = peak
    if not scenario.fixed and scenario.low < scenario.peak:
        low = needed(question, predict, factor=scenario.low, cache=cache) or peak
    low, peak = low + _spares(low, phase), peak + _spares(peak, phase)
    held_s = scenario.peaks_per_day * COOLDOWN_DOWN_S
    at_peak = min(1.0, scenario.peak_share + held_s / DAY_S)
    return Fleet(
        replicas_min=low,
        replicas_max=peak,
        spares=_spares(peak, phase),
        mean=low + (peak - low) * at_peak,
    )


def _options(question: Question, predict: Predict) -> list[Option]:
    options: list[Option] = []
    for cache in (True, False):
        least = least_replicas(question.workload, question.profile, cache=cache)
        good = needed(question, predict, factor=1.0, cache=cache)
        sizes = {max(least, (good or least) - 1), *(math.ceil(least * f) for f in OPTION_FACTORS)}
        sizes |= {good} if good else set()
        options += [_option(question, predict, size, cache=cache) for size in sorted(sizes)]
    return options


def _option(question: Question, predict: Predict, replicas: int, *, cache: bool) -> Option:
    found = predict(question.workload, question.profile, replicas, cache)
    reasons = []
    idle_ms = _idle_ms(question, cache=cache)
    if idle_ms > question.slo_p95_ms:
        reasons.append(
            f"one idle replica already needs {idle_ms:,.0f} ms of the "
            f"{question.slo_p95_ms:,.0f} ms asked: no number of replicas helps"
        )
    elif found.ttft_p95_ms > question.slo_p95_ms:
        reasons.append(
            f"p95 {found.ttft_p95_ms:,.0f} ms is above the {question.slo_p95_ms:,.0f} ms asked"
        )
    return Option(
        cache=cache,
        replicas=replicas,
        ttft_p50_ms=found.ttft_p50_ms,
        ttft_p95_ms=found.ttft_p95_ms,
        busy=found.busy,
        cost_per_day=replicas * 24.0 * question.price_per_replica_hour,
        reasons=tuple(reasons),
    )


def mean_rate(question: Question) -> float:
    """Requests/s over the scenario's day."""
    scenario = question.scenario
    factor = scenario.low + (scenario.peak - scenario.low) * scenario.peak_share
    return question.workload.requests_per_second * factor


def cost_per_day(question: Question, fleet: Fleet) -> float:
    return fleet.mean * 24.0 * question.price_per_replica_hour


def cost_per_million_tokens(question: Question, fleet: Fleet) -> float:
    """Of prompt and output tokens together, cached ones included."""
    workload = question.workload
    tokens = mean_rate(question) * DAY_S * (workload.prompt_tokens + workload.output_tokens)
    return cost_per_day(question, fleet) / (tokens / 1e6)


def _figures(question: Question, fleet: Fleet | None, without: Fleet | None) -> list[Figure]:
    workload, profile, scenario = question.workload, question.profile, question.scenario
    rates = "measured" if profile.measured else "assumed"
    rows = [
        ("requests_per_second", workload.requests_per_second, "1/s", "asked"),
        ("prompt_tokens", workload.prompt_tokens, "tokens", "asked"),
        ("output_tokens", workload.output_tokens, "tokens", "asked"),
        ("shared_prefix", workload.shared_prefix, "share of the prompt", "asked"),
        ("slo_p95_ms", question.slo_p95_ms, "ms to the first token", "asked"),
        ("price_per_replica_hour", question.price_per_replica_hour, "money", "asked"),
        ("work", _tokens_per_s(workload), "tokens/s, prompt and output", "asked"),
        ("length_cv", workload.length_cv, "spread of lengths", "assumed"),
        ("arrival_cv", workload.arrival_cv, "spread of gaps", "assumed"),
        ("cold_start_s", question.cold_start_s, "s", "assumed"),
        ("peak_rate", scenario.peak, "x the asked rate", "assumed"),
        ("peak_share", scenario.peak_share, "of the time", "assumed"),
        ("prefill_tokens_per_s", profile.prefill_tokens_per_s, "tokens/s a replica", rates),
        ("output_tokens_per_s", output_rate(workload, profile), "tokens/s a replica", rates),
        ("cached_tokens", float(workload.cached_tokens), "tokens of a mean prompt", "assumed"),
    ]
    for label, found in (("", fleet), ("_without_cache", without)):
        if found is not None:
            rows += [
                (f"replicas_min{label}", found.replicas_min, "replicas", "simulated"),
                (f"replicas_max{label}", found.replicas_max, "replicas", "simulated"),
                (f"cost_per_day{label}", cost_per_day(question, found), "money", "simulated"),
                (
                    f"cost_per_million_tokens{label}",
                    cost_per_million_tokens(question, found),
                    "money",
                    "simulated",
                ),
            ]
    return [Figure(name=n, value=v, unit=u, source=s) for n, v, u, s in rows]


def _tokens_per_s(workload: Workload) -> float:
    return workload.requests_per_second * (workload.prompt_tokens + workload.output_tokens)


def _cache(question: Question) -> Mapping[str, object]:
    """The guide's settings, where the scenario's are stronger; RAM never below what is in use."""
    fields = dict(question.phase.cache) | dict(question.scenario.cache)
    fields["max_tokens"] = max(_whole(fields["max_tokens"]), _tokens_in_use(question))
    # Blocks reach other hosts through the shared tier; ranks of a GPU host are turned on by hand.
    fields.pop("enable_distributed", None)
    fields.pop("distributed_backend", None)
    return fields


def _whole(value: object) -> int:
    assert isinstance(value, int), value
    return value


def _tokens_in_use(question: Question) -> int:
    """Two full batches of prompts, rounded up to a power of two."""
    tokens = 2 * question.profile.slots * question.workload.prompt_tokens
    return 1 << (tokens - 1).bit_length()


def _findings(question: Question, fleet: Fleet | None) -> list[str]:
    phase, scenario, workload = question.phase, question.scenario, question.workload
    found = []
    by_rate = phase_for(workload.requests_per_second)
    if by_rate is not phase:
        tokens = f"{_tokens_per_s(workload):,.0f} tokens/s"
        found.append(
            f"{workload.requests_per_second:g} requests/s ({tokens}) is phase {by_rate.number} "
            f"by the guide's limits, phase {phase.number} was asked"
        )
    if "enable_distributed" in {**phase.cache, **scenario.cache}:
        found.append(
            "the guide turns enable_distributed on: between hosts the shared tier (Valkey) does "
            "that here; turn it on where a host has several ranks"
        )
    if fleet is None:
        return [*found, "no number of replicas holds the target: see the reasons of the options"]
    found += _fleet_findings(question, fleet)
    return found


def _fleet_findings(question: Question, fleet: Fleet) -> list[str]:
    phase, scenario = question.phase, question.scenario
    found = []
    guide_max = phase.replicas_max or math.inf
    if not phase.replicas_min <= fleet.replicas_max <= guide_max:
        upper = f" to {phase.replicas_max}" if phase.replicas_max else " and more"
        found.append(
            f"the guide provides {phase.replicas_min}{upper} replicas for phase {phase.number}; "
            f"this load needs {fleet.replicas_max} with this profile"
        )
    if fleet.replicas_max > scenario.fleet_max:
        found.append(
            f"the guide's {scenario.name} ends at {scenario.fleet_max} replicas, "
            f"this load needs {fleet.replicas_max}"
        )
    if phase.number == 1:
        found.append("one instance is a single point of failure: a restart is an outage")
    late = _late_share(question, fleet)
    if late > 0.01:
        found.append(
            f"about {late:.1%} of requests come while a spike waits for cold starts of "
            f"{question.cold_start_s:g} s: hold {fleet.replicas_max} replicas, or start faster"
        )
    return found


def _late_share(question: Question, fleet: Fleet) -> float:
    """Requests that come during the cold start of a peak, of all; assumed to be late."""
    scenario = question.scenario
    if fleet.replicas_min >= fleet.replicas_max or scenario.peaks_per_day < 2:
        return 0.0
    at_risk_s = scenario.peaks_per_day * question.cold_start_s
    rate = question.workload.requests_per_second * scenario.peak
    return at_risk_s * rate / (mean_rate(question) * DAY_S)
