"""The report as one self-contained HTML page: tables, and plots as inline SVG.

Refuses to load anything: no script, font or outside request; dark and light follow the system.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["render_page"]

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 46
POINTS_MAX = 200
COLOURS = ("#1f6feb", "#d1571b", "#1a7f37", "#8250df")
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --rule: #d0d7de; --soft: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --rule: #3d444d; --soft: #9198a1; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
.rule { stroke: var(--rule); } polyline { fill: none; stroke-width: 2; }
.soft { color: var(--soft); } .key { margin-right: 1.2rem; white-space: nowrap; }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid var(--rule); }
"""

Points = Sequence[tuple[float, float]]


def render_page(report: Mapping[str, Any], latencies: Mapping[str, Sequence[float]]) -> str:
    """The page for a report (as `bul bench --json` prints it), and sorted values in ms by name."""
    parts = [f"<h1>bul bench</h1><p>{html.escape(str(report['load']))}</p>"]
    warnings = report.get("warnings", ())
    parts += [f"<p><b>Warning:</b> {html.escape(warning)}.</p>" for warning in warnings]
    if report.get("steps"):
        parts.append(_sweep(report["steps"]))
    if report.get("runs"):
        parts.append(_runs(report["runs"]))
    curves = {name: _cumulative(values) for name, values in latencies.items() if len(values)}
    if curves:
        parts.append("<h2>Latency: share of requests at or below</h2>")
        parts.append(_plot(curves, "ms (log scale)", log=True, top=1.0))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>bul bench</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _sweep(steps: Sequence[Mapping[str, Any]]) -> str:
    ordered = sorted(steps, key=lambda step: step["rate"])
    done = [(step["rate"], step["completed_per_s"]) for step in ordered]
    good = [(step["rate"], step["summary"]["goodput_per_s"] or 0.0) for step in ordered]
    ttft = [(step["rate"], step["summary"]["ttft_ms"]["p95"] or 0.0) for step in ordered]
    rows = [
        (
            step["rate"],
            step["completed_per_s"],
            step["summary"]["ttft_ms"]["p95"],
            step["summary"]["e2e_ms"]["p95"],
            "yes" if step["sustained"] else f"no: {step['reason']}",
        )
        for step in steps
    ]
    return (
        "<h2>Rate sweep</h2>"
        + _plot({"completed/s": done, "goodput/s": good}, "offered requests/s")
        + "<h2>p95 time to the first token, ms</h2>"
        + _plot({"TTFT p95": ttft}, "offered requests/s")
        + _table(("offered/s", "completed/s", "TTFT p95 ms", "E2E p95 ms", "sustained"), rows)
    )


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (number, run["requests"], run["ok"], run["requests_per_s"], run["goodput_per_s"],
         run["output_tokens_per_s"], run["cached_token_share"])
        for number, run in enumerate(runs, 1)
    ]  # fmt: skip
    heads = ("run", "requests", "ok", "requests/s", "goodput/s", "output tokens/s", "cached share")
    spreads = [
        (f"{label}, run {number}", *(run[key][p] for p in ("p50", "p90", "p95", "p99", "max")))
        for number, run in enumerate(runs, 1)
        for label, key in (("TTFT", "ttft_ms"), ("between tokens", "itl_ms"), ("E2E", "e2e_ms"))
    ]
    errors = [(f"{kind}, run {n}", count) for n, run in enumerate(runs, 1)
              for kind, count in run["errors"].items()]  # fmt: skip
    found = "<h2>Runs</h2>" + _table(heads, rows)
    found += "<h2>Latency, ms</h2>" + _table(("", "p50", "p90", "p95", "p99", "max"), spreads)
    return found + ("<h2>Errors</h2>" + _table(("kind", "requests"), errors) if errors else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_text(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _text(value: Any) -> str:
    if value is None:
        return "no data"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def _cumulative(values: Sequence[float]) -> Points:
    count = len(values)
    step = max(count // POINTS_MAX, 1)
    picks = [*range(0, count, step), count - 1]
    return [(max(values[at], 0.01), (at + 1) / count) for at in picks]


def _plot(curves: Mapping[str, Points], label: str, *, log: bool = False, top: float = 0.0) -> str:
    points = [point for found in curves.values() for point in found]
    scale = math.log10 if log else float
    low = scale(min(x for x, _ in points)) if log else 0.0
    high = scale(max(x for x, _ in points))
    high = high if high > low else low + 1.0
    top = top or max(max(y for _, y in points) * 1.08, 1e-9)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> str:
        right = LEFT + across * (scale(x) - low) / (high - low)
        return f"{right:.1f},{TOP + down * (1 - y / top):.1f}"

    parts = [_grid(low, high, top, label, log=log)]
    for (name, found), colour in zip(curves.items(), COLOURS, strict=False):
        line = " ".join(place(x, y) for x, y in found)
        parts.append(
            f'<polyline stroke="{colour}" points="{line}"><title>{html.escape(name)}</title>'
            "</polyline>"
        )
    keys = "".join(
        f'<span class="key"><i style="background:{colour}"></i> {html.escape(name)}</span>'
        for name, colour in zip(curves, COLOURS, strict=False)
    )
    alt = html.escape(f"{', '.join(curves)} by {label}")
    view = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{alt}">'
    return f"<p>{keys}</p>{view}{''.join(parts)}</svg>"


def _grid(low: float, high: float, top: float, label: str, *, log: bool) -> str:
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = []
    for step in range(5):
        y = TOP + down * (1 - step / 4)
        parts.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_text(top * step / 4)}</text>'
        )
        value = low + (high - low) * step / 4
        parts.append(
            f'<text x="{LEFT + across * step / 4:.1f}" y="{HEIGHT - 26}" text-anchor="middle">'
            f"{_text(10.0**value if log else float(value))}</text>"
        )
    middle = LEFT + across / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(label)}</text>'
    )
    return "".join(parts)
