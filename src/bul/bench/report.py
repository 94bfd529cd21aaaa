"""What a run means: percentiles, rates, goodput, errors. Pure.

Refuses to mix failed requests into latencies: they are counted by kind, and against goodput.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bul.bench.client import Sample
from bul.bench.load import Run
from bul.bench.statistics import bootstrap_interval, percentile, t_interval

__all__ = ["CPU_SHARE_WARN", "Slo", "combine", "document", "summarise"]

SHARES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
CPU_SHARE_WARN = 0.8
LATE_WARN_S = 0.05
GAPS_MAX = 4_000_000

Summary = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Slo:
    """What a good request keeps to; None asks nothing."""

    ttft_ms: float | None = None
    e2e_ms: float | None = None

    def kept(self, sample: Sample) -> bool:
        if sample.error:
            return False
        ttft_good = self.ttft_ms is None or sample.ttft_s * 1000 <= self.ttft_ms
        return ttft_good and (self.e2e_ms is None or sample.e2e_s * 1000 <= self.e2e_ms)


def summarise(run: Run, slo: Slo = Slo(), *, seed: int = 0) -> Summary:
    """One run without its warm-up. Times in ms, rates per second of `seconds`; nan: no data.

    `seconds` is from the first request's due time to the last end, but at least the run's span of
    intended times.
    """
    samples = run.measured
    good = [sample for sample in samples if not sample.error]
    begin_s = min((sample.intended_s for sample in samples), default=run.started_s)
    seconds = max(max((sample.done_s for sample in samples), default=begin_s) - begin_s, 1e-9)
    kept = sum(map(slo.kept, samples))
    cpu_share = run.cpu_s / max(run.ended_s - run.started_s, 1e-9)
    late_s = [sample.sent_s - sample.intended_s for sample in samples if sample.sent_s]
    prompt = sum(sample.prompt_tokens for sample in good)
    cached = sum(sample.cached_tokens for sample in good)
    return {
        "requests": len(samples),
        "ok": len(good),
        "errors": dict(sorted(Counter(s.error for s in samples if s.error).items())),
        "error_share": _share(len(samples) - len(good), len(samples)),
        "seconds": seconds,
        "requests_per_s": len(good) / seconds,
        "offered_per_s": _offered(samples),
        "goodput_per_s": kept / seconds,
        "goodput_share": _share(kept, len(samples)),
        "output_tokens_per_s": sum(sample.tokens for sample in good) / seconds,
        "prompt_tokens_per_s": prompt / seconds,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "cached_token_share": _share(cached, prompt),
        "usage_share": _share(sum(sample.usage_seen for sample in good), len(good)),
        "ttft_ms": _spread([sample.ttft_s * 1000 for sample in good], seed),
        "itl_ms": _spread(_gaps_ms(good), seed),
        "e2e_ms": _spread([sample.e2e_s * 1000 for sample in good], seed),
        "generator": {
            "cpu_share": cpu_share,
            "cpu_us_per_request": 1e6 * run.cpu_s / max(len(run.samples), 1),
            "late_p99_ms": 1000 * percentile(late_s, 0.99),
        },
        "warmup": run.warmup,
        "interrupted": run.interrupted,
        "warnings": _warnings(samples, cpu_share, percentile(late_s, 0.99)),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _offered(samples: Sequence[Sample]) -> float:
    due_s = sorted(sample.intended_s for sample in samples)
    if len(due_s) < 2 or due_s[-1] == due_s[0]:
        return math.nan
    return (len(due_s) - 1) / (due_s[-1] - due_s[0])


def _gaps_ms(samples: Sequence[Sample]) -> list[float]:
    gaps = itertools.chain.from_iterable(sample.gaps_s for sample in samples)
    return [gap_s * 1000 for gap_s in itertools.islice(gaps, GAPS_MAX)]


def _spread(values: Sequence[float], seed: int) -> Summary:
    found: Summary = {name: percentile(values, share) for name, share in SHARES.items()}
    interval = bootstrap_interval(values, 0.95, seed=seed)
    found["mean"] = sum(values) / len(values) if values else math.nan
    found["max"] = max(values, default=math.nan)
    found["p95_low"], found["p95_high"] = interval.low, interval.high
    return found


def _warnings(samples: Sequence[Sample], cpu_share: float, late_s: float) -> list[str]:
    found = []
    if cpu_share > CPU_SHARE_WARN:
        found.append(f"the load generator used {cpu_share:.0%} of a core: it is part of the figure")
    if late_s > LATE_WARN_S:
        found.append(f"1 % of the requests were sent {late_s * 1000:.0f} ms late or more")
    good = [sample for sample in samples if not sample.error]
    if good and not any(sample.usage_seen for sample in good):
        found.append("the endpoint sends no usage: tokens are counted as chunks, cached ones not")
    return found


REPEATED = {
    "requests_per_s": ("requests_per_s",),
    "goodput_per_s": ("goodput_per_s",),
    "output_tokens_per_s": ("output_tokens_per_s",),
    "cached_token_share": ("cached_token_share",),
    "error_share": ("error_share",),
    "ttft_p50_ms": ("ttft_ms", "p50"),
    "ttft_p95_ms": ("ttft_ms", "p95"),
    "itl_p50_ms": ("itl_ms", "p50"),
    "itl_p95_ms": ("itl_ms", "p95"),
    "e2e_p50_ms": ("e2e_ms", "p50"),
    "e2e_p95_ms": ("e2e_ms", "p95"),
}
"""The figures that repeats get an interval for -> where they stand in a summary."""


def combine(summaries: Sequence[Summary]) -> Summary:
    """Mean and 95 % interval over repeats, by Student's t."""
    return {
        name: dataclasses.asdict(t_interval([_at(summary, path) for summary in summaries]))
        for name, path in REPEATED.items()
    }


def _at(summary: Mapping[str, Any], path: Sequence[str]) -> float:
    value: Any = summary
    for key in path:
        value = value[key]
    return float(value)


def document(value: Any) -> Any:
    """`value` for JSON: nan and inf become null, floats keep six digits that mean something."""
    if isinstance(value, Mapping):
        return {key: document(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [document(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
