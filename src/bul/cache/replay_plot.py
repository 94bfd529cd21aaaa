"""Draws replay results as one self-contained HTML page: a curve per policy, a chart per trace.

It refuses to load anything: no script, no font, no outside request; dark and light follow the
reader's system. The figures stand in a table below each chart, for those who cannot see curves.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

__all__ = ["render_plot"]

Row = Mapping[str, object]

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 130, 16, 44
LABEL_GAP = 14.0

_COLOURS = (
    "#1f6feb", "#d1571b", "#1a7f37", "#8250df", "#b35900", "#bf3989", "#0a7d91", "#6e7781",
    "#9a6700",
)  # fmt: skip
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --rule: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --rule: #3d444d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
.rule { stroke: var(--rule); } polyline { fill: none; stroke-width: 2; }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid var(--rule); }
"""


def render_plot(rows: Sequence[Row], cost_model: str) -> str:
    """The page for `rows` (as in `bul cache replay --json`); rows of one trace share a chart."""
    by_trace: dict[str, list[Row]] = {}
    for row in rows:
        by_trace.setdefault(str(row["trace"]), []).append(row)
    charts = "\n".join(_section(trace, found) for trace, found in by_trace.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Token hit ratio by cache size</title><style>{_STYLE}</style></head><body>\n"
        "<h1>Token hit ratio by cache size</h1>\n"
        f"<p>Saved prefill: {html.escape(cost_model)}.</p>\n"
        f"{charts}\n</body></html>\n"
    )


def _section(trace: str, rows: Sequence[Row]) -> str:
    policies: dict[str, list[Row]] = {}
    for row in rows:
        policies.setdefault(str(row["policy"]), []).append(row)
    for found in policies.values():
        found.sort(key=_blocks)
    return f"<h2>{html.escape(trace)}</h2>\n{_chart(trace, policies)}\n{_table(policies)}"


def _blocks(row: Row) -> int:
    return int(str(row["capacity_blocks"]))


def _ratio(row: Row) -> float:
    return float(str(row["token_hit_ratio"]))


def _chart(trace: str, policies: Mapping[str, Sequence[Row]]) -> str:
    rows = [row for found in policies.values() for row in found]
    sizes = sorted({_blocks(row) for row in rows})
    top = max(math.ceil(max(map(_ratio, rows)) * 10) / 10, 0.1)
    low, high = math.log(sizes[0]), math.log(sizes[-1])
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(blocks: int) -> float:
        share = (math.log(blocks) - low) / (high - low) if high > low else 0.5
        return LEFT + inner_width * share

    def y(ratio: float) -> float:
        return TOP + inner_height * (1.0 - ratio / top)

    parts = [_axes(top, [(blocks, x(blocks)) for blocks in sizes], y(0.0))]
    ends: list[tuple[float, str, str]] = []
    for number, (policy, found) in enumerate(policies.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [(x(_blocks(row)), y(_ratio(row))) for row in found]
        parts.append(_curve(policy, points, colour))
        ends.append((points[-1][1], policy, colour))
    parts.extend(_labels(ends))
    label = html.escape(f"Token hit ratio of {trace} by capacity")
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return f"{opening}{''.join(parts)}</svg>"


def _axes(top: float, ticks: Sequence[tuple[int, float]], bottom: float) -> str:
    parts = []
    steps = round(top * 10)
    for step in range(steps + 1):
        height = bottom - (bottom - TOP) * step / steps
        parts.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" '
            f'y2="{height:.1f}"/><text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">'
            f"{step / 10:.1f}</text>"
        )
    for blocks, at in ticks:
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 24}" text-anchor="middle">{blocks:,}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">blocks (log scale)</text>'
    )
    return "".join(parts)


def _curve(policy: str, points: Sequence[tuple[float, float]], colour: str) -> str:
    line = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
    dots = "".join(
        f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>'
        for across, down in points
    )
    title = f"<title>{html.escape(policy)}</title>"
    return f'<g>{title}<polyline points="{line}" stroke="{colour}"/>{dots}</g>'


def _labels(ends: Sequence[tuple[float, str, str]]) -> list[str]:
    """Names at the right ends, pushed apart so that equal curves stay readable."""
    parts: list[str] = []
    below = -math.inf
    for height, policy, colour in sorted(ends):
        at = max(height, below + LABEL_GAP)
        below = at
        parts.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{at + 4:.1f}" style="fill:{colour}">'
            f"{html.escape(policy)}</text>"
        )
    return parts


def _table(policies: Mapping[str, Sequence[Row]]) -> str:
    sizes = sorted({_blocks(row) for found in policies.values() for row in found})
    head = "".join(f"<th>{blocks:,} blocks</th>" for blocks in sizes)
    body = []
    for policy, found in policies.items():
        ratios = {_blocks(row): f"{_ratio(row):.4f}" for row in found}
        cells = "".join(f"<td>{ratios.get(blocks, '')}</td>" for blocks in sizes)
        body.append(f"<tr><td>{html.escape(policy)}</td>{cells}</tr>")
    return f"<table><tr><th>policy</th>{head}</tr>{''.join(body)}</table>"
