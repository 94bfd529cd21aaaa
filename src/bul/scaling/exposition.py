"""The scaler's own metrics in Prometheus' text format, shown beside the router's.

Refuses labels that traffic could choose: directions and states are from fixed sets.
"""

from __future__ import annotations

from collections import Counter

from bul.scaling.adaptive import Capacity
from bul.scaling.decision import Direction
from bul.scaling.history import Record

__all__ = ["ScalerMetrics"]


class ScalerMetrics:
    """Counts records; `text` shows them and the last one's values."""

    def __init__(self) -> None:
        self._decisions: Counter[str] = Counter()
        self._acted: Counter[str] = Counter()
        self._last: Record | None = None
        self.findings = self.without_data = 0

    def add(self, record: Record) -> None:
        """One record of the loop."""
        direction = record.decision.direction.value
        self._decisions[direction] += 1
        self._acted[direction] += record.acted
        self.findings += bool(record.finding)
        self.without_data += record.signals is None
        self._last = record

    def text(self, *, capacity: Capacity | None, cold_start_s: float) -> str:
        """Empty before the first record."""
        if self._last is None:
            return ""
        last, lines = self._last, list[str]()
        for name, counts, what in (
            ("decisions", self._decisions, "Decisions by direction."),
            ("acted", self._acted, "Decisions that the driver carried out."),
        ):
            lines += [f"# HELP bul_scaler_{name}_total {what}"]
            lines += [f"# TYPE bul_scaler_{name}_total counter"]
            lines += [
                f'bul_scaler_{name}_total{{direction="{way}"}} {counts[way]}' for way in Direction
            ]
        singles: list[tuple[str, float, str]] = [
            ("findings_total", self.findings, "Ticks with a finding about the driver."),
            ("without_signals_total", self.without_data, "Ticks without signals, or by hand."),
            ("replicas", last.replicas_before, "Replicas as the last tick found them."),
            ("replicas_wanted", last.decision.replicas, "What the last decision wanted."),
            ("finding", bool(last.finding), "1 while something is wrong with the driver."),
            ("alert", bool(last.decision.alert), "1 while more replicas would not help."),
            ("advisory", last.advisory, "1 when decisions are only written down."),
            ("cold_start_seconds", cold_start_s, "From a replica's start to its first request."),
        ]
        if capacity is not None:
            singles += [
                ("capacity_prefill_tokens_per_second", capacity.prefill_tokens_per_s, "Measured."),
                ("capacity_output_tokens_per_second", capacity.output_tokens_per_s, "Measured."),
            ]
        for name, value, what in singles:
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP bul_scaler_{name} {what}", f"# TYPE bul_scaler_{name} {kind}"]
            lines += [f"bul_scaler_{name} {value:g}"]
        return "\n".join(lines) + "\n"
