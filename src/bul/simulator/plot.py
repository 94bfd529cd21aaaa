"""Draws a comparison as one self-contained HTML page: violations against replica-hours.

Refuses to load anything: no script, no font, no outside request. The figures stand in a table
below the chart, for those who cannot see curves.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

__all__ = ["render"]

Row = Mapping[str, object]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 64, 110, 16, 48
_COLOURS = (
    "#1f6feb", "#d1571b", "#1a7f37", "#8250df", "#b35900", "#bf3989", "#0a7d91", "#6e7781",
)  # fmt: skip
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --rule: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --rule: #3d444d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
.rule { stroke: var(--rule); } polyline { fill: none; stroke-width: 2; }
table { border-collapse: collapse; } th, td { padding: .2rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid var(--rule); }
tr.chosen { font-weight: 600; }
"""
_COLUMNS = (
    ("policy", "policy"),
    ("setting", "setting"),
    ("violation_share", "violations"),
    ("worst_5min_share", "worst 5 min"),
    ("replica_hours", "replica-hours"),
    ("ups", "ups"),
    ("downs", "downs"),
    ("reversals", "reversals"),
)


def render(title: str, note: str, rows: Sequence[Row]) -> str:
    """The page; a curve per policy, the chosen setting as a large dot."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(note)}</p>\n"
        f"{_chart(rows)}\n{_table(rows)}\n</body></html>\n"
    )


def _number(row: Row, field: str) -> float:
    value = row[field]
    assert isinstance(value, int | float), field
    return float(value)


def _chart(rows: Sequence[Row]) -> str:
    hours = [_number(row, "replica_hours") for row in rows]
    low, high = min(hours), max(hours)

    def x(share: float) -> float:
        part = (math.log10(min(max(share, 1e-4), 1.0)) + 4.0) / 4.0
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / max(high - low, 1e-9) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="the table below, drawn">']
    for share in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        at = x(share)
        parts.append(
            f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{share:.2%}</text>'
        )
    for part in range(5):
        value = low + (high - low) * part / 4
        parts.append(
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.0f}</text>'
        )
    parts.append(
        f'<text x="{(WIDTH - RIGHT + LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        "share of requests over the target (log); replica-hours upwards</text>"
    )
    names = list(dict.fromkeys(str(row["policy"]) for row in rows))
    for index, name in enumerate(names):
        own = [row for row in rows if row["policy"] == name]
        points = [(x(_number(r, "violation_share")), y(_number(r, "replica_hours"))) for r in own]
        parts.append(_curve(name, own, points, _COLOURS[index % len(_COLOURS)], TOP + 16 * index))
    return "".join([*parts, "</svg>"])


def _curve(
    name: str,
    rows: Sequence[Row],
    points: Sequence[tuple[float, float]],
    colour: str,
    legend_y: int,
) -> str:
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    dots = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{6 if row["chosen"] else 3}" fill="{colour}"/>'
        for row, (a, b) in zip(rows, points, strict=True)
    )
    legend = (
        f'<rect x="{WIDTH - RIGHT + 14}" y="{legend_y}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{WIDTH - RIGHT + 30}" y="{legend_y + 10}">{html.escape(name)}</text>'
    )
    return f'<polyline points="{line}" stroke="{colour}"/>{dots}{legend}'


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{title}</th>" for _, title in _COLUMNS)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{html.escape(_cell(row, field))}</td>" for field, _ in _COLUMNS)
        lines.append(f'<tr class="chosen">{cells}</tr>' if row["chosen"] else f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(row: Row, field: str) -> str:
    value = row[field]
    if field.endswith("_share"):
        return f"{_number(row, field):.2%}"
    return f"{value:,.1f}" if field == "replica_hours" else str(value)
