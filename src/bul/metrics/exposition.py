"""The replica's metrics in Prometheus' text format, in a registry of their own.

Refuses labels that a client could choose: route and code come from fixed sets, so the number of
series is bounded, and no prompt, key or tenant name can ever be one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE", "CacheFigures", "ServiceMetrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

Gauges = Mapping[str, float]
CacheFigures = tuple[Mapping[str, Gauges], Mapping[str, Gauges]]
"""Part of the cache -> name -> value, and class of request -> name -> value."""

NOT_TIERS = {"engine": "bul_cache_", "values": "bul_cache_values_"}
"""Parts that have names of their own; every other part is a tier."""


def _no_cache() -> CacheFigures:
    return {}, {}


class ServiceMetrics:
    """Counters and histograms of one replica; gauges are read when the text is made.

    gauges: called per scrape, name without prefix -> value. cache: called per scrape; a tier's
    figures are shown as `bul_cache_tier_NAME{tier=...}`, a class's as
    `bul_cache_class_NAME{class=...}`, the engine's and the general values' without a label.
    """

    def __init__(
        self,
        *,
        gauges: Callable[[], Gauges],
        cache: Callable[[], CacheFigures] = _no_cache,
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Live(gauges, cache))
        self._requests = Counter(
            "bul_requests_total", "Answered requests.", ["route", "code"], registry=self.registry
        )
        self._aborted = self._counter("bul_requests_aborted_total", "Clients that left early.")
        self._prompt = self._counter("bul_prompt_tokens_total", "Prompt tokens taken in.")
        self._cached = self._counter(
            "bul_prompt_tokens_cached_total", "Prompt tokens loaded instead of computed."
        )
        self._of_class = {
            name: Counter(
                f"bul_tenant_{name}_total", what, ["tenant_class"], registry=self.registry
            )
            for name, what in (
                ("prompt_tokens", "Prompt tokens taken in, by class of tenant."),
                ("cached_tokens", "Prompt tokens loaded, by class of tenant."),
                ("output_tokens", "Tokens generated, by class of tenant."),
            )
        }
        self._output = self._counter("bul_output_tokens_total", "Tokens generated.")
        self._ttft = self._histogram(
            "bul_time_to_first_token_seconds", "From request to first text.", TTFT_BUCKETS_S
        )
        self._between = self._histogram(
            "bul_inter_token_latency_seconds", "Between two pieces of text.", TOKEN_BUCKETS_S
        )
        self._whole = self._histogram(
            "bul_request_duration_seconds", "From request to last text.", REQUEST_BUCKETS_S
        )

    def answered(self, route: str, code: int) -> None:
        """One response; `route` is the pattern, not the path."""
        self._requests.labels(route, str(code)).inc()

    def aborted(self) -> None:
        """The client left before its answer was complete."""
        self._aborted.inc()

    def first_text(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def next_text(self, seconds: float) -> None:
        self._between.observe(seconds)

    def generated(
        self,
        seconds: float | None,
        tenant_class: str = "anonymous",
        *,
        prompt_tokens: int,
        cached_tokens: int,
        output_tokens: int,
    ) -> None:
        """One generation request came to its end; `seconds` is None if it was not whole.

        tenant_class: of a fixed few; a tenant's name would be a label without bound.
        """
        if seconds is not None:
            self._whole.observe(seconds)
        self._prompt.inc(prompt_tokens)
        self._cached.inc(cached_tokens)
        self._output.inc(output_tokens)
        counts = {
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "output_tokens": output_tokens,
        }
        for name, count in counts.items():
            self._of_class[name].labels(tenant_class).inc(count)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(name, what, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, what, buckets=buckets, registry=self.registry)


class _Live(Collector):
    """Gauges that are asked for at the moment of the scrape."""

    def __init__(self, gauges: Callable[[], Gauges], cache: Callable[[], CacheFigures]) -> None:
        self._gauges = gauges
        self._cache = cache

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for name, value in self._gauges().items():
            family = _family(f"bul_{name}", ())
            family.add_metric((), value)
            yield family
        parts, classes = self._cache()
        for part, prefix in NOT_TIERS.items():
            for name, value in parts.get(part, {}).items():
                family = _family(prefix + name, ())
                family.add_metric((), value)
                yield family
        tiers = {part: values for part, values in parts.items() if part not in NOT_TIERS}
        yield from _by_label("bul_cache_tier_", "tier", tiers)
        yield from _by_label("bul_cache_class_", "class", classes)


def _by_label(prefix: str, label: str, parts: Mapping[str, Gauges]) -> Iterable[Metric]:
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for part, values in parts.items():
        for name, value in values.items():
            family = families.get(name)
            if family is None:
                family = families[name] = _family(prefix + name, (label,))
            family.add_metric((part,), value)
    return families.values()


def _family(name: str, labels: Sequence[str]) -> GaugeMetricFamily | CounterMetricFamily:
    """By its name: what ends in _total only grows."""
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return kind(_conventional(name), "See docs/reference/metrics.md.", labels=labels)


def _conventional(name: str) -> str:
    """Our units as Prometheus spells them."""
    for ours, theirs in (
        ("_per_s", "_per_second"),
        ("_s", "_seconds"),
        ("_values_values", "_values"),
    ):
        if name.endswith(ours):
            return name.removesuffix(ours) + theirs
    return name
