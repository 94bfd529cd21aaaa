"""Wiring of traces: `[tracing]` asks for them, the extra sends them."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator

if typing.TYPE_CHECKING:
    from bul.config import Settings
    from bul.metrics.otlp import Exporter
    from bul.tracing import Tracer

__all__ = ["HELP", "Tracing", "metrics_text", "tracing"]


@dataclasses.dataclass(frozen=True, slots=True)
class Tracing:
    """Of one process. tracer: None where nobody asked: then nothing is imported either."""

    tracer: Tracer | None = None
    exporter: Exporter | None = None

    def stats(self) -> typing.Mapping[str, float]:
        """For the metrics; empty without tracing."""
        return {} if self.exporter is None else self.exporter.stats()


HELP: typing.Final = {
    "trace_spans_sent_total": "Spans that the collector took.",
    "trace_spans_dropped_total": "Spans that found the queue full, or that the collector refused.",
    "trace_spans_waiting": "Spans that wait to be sent.",
}


def metrics_text(stats: typing.Mapping[str, float]) -> str:
    """Figures of an exporter in Prometheus' text format, for a router."""
    lines = []
    for name, value in stats.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP bul_{name} {HELP[name]}", f"# TYPE bul_{name} {kind}"]
        lines.append(f"bul_{name} {value}")
    return "".join(f"{line}\n" for line in lines)


@contextlib.contextmanager
def tracing(settings: Settings, role: str) -> Iterator[Tracing]:
    """Traces until the block ends; then what is left is sent, in seconds at most.

    role: "router" or "replica". Raises ConfigError without the extra.
    """
    if not settings.tracing.endpoint:
        yield Tracing()
        return
    try:
        from bul.metrics.otlp import Exporter
    except ModuleNotFoundError as error:
        from bul.errors import ConfigError

        if (error.name or "").partition(".")[0] not in ("opentelemetry", "google"):
            raise
        raise ConfigError(
            "tracing.endpoint is set, but the extra 'tracing' is not installed",
            hint="pip install 'bul[tracing]'",
        ) from None
    from bul.tracing import Tracer

    exporter = Exporter(settings.tracing, role)
    try:
        yield Tracing(Tracer(exporter.take, sample_share=settings.tracing.sample_share), exporter)
    finally:
        exporter.close()
