"""The options of a plan as one self-contained page: p95 against cost, the cheapest ones marked.

Refuses to load anything: no script, no font, no outside request; the table says what the picture
says.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from bul.planner.plan import Option, Plan

__all__ = ["pareto", "render_page"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 380, 70, 50, 20, 20
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --rule: #d0d7de;
  --on: #1f6feb; --off: #d1571b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --rule: #3d444d;
  --on: #58a6ff; --off: #f0883e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
.rule { stroke: var(--rule); } .on { fill: var(--on); } .off { fill: var(--off); }
.front { fill: none; stroke: var(--ink); stroke-dasharray: 4 4; }
table { border-collapse: collapse; } th, td { padding: .2rem .6rem; text-align: right; }
td:last-child, th:last-child { text-align: left; } tr { border-bottom: 1px solid var(--rule); }
"""


def pareto(options: Sequence[Option]) -> list[Option]:
    """Those that no other beats in both replicas and p95, fewest replicas first."""
    front: list[Option] = []
    for option in sorted(options, key=lambda o: (o.replicas, o.ttft_p95_ms)):
        if not front or option.ttft_p95_ms < front[-1].ttft_p95_ms:
            front.append(option)
    return front


def render_page(plan: Plan) -> str:
    """The page."""
    question = plan.question
    title = f"Phase {question.phase.number}, {question.scenario.name}"
    note = (
        f"{question.workload.requests_per_second:g} requests/s of "
        f"{question.workload.prompt_tokens} + {question.workload.output_tokens} tokens, profile "
        f"{question.profile.name}; simulated. Blue: with the cache, orange: without. The dashed "
        "line joins what no other option beats in both; the ruled line is the target."
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(note)}</p>\n"
        f"{_chart(plan)}\n{_table(plan)}\n</body></html>\n"
    )


def _chart(plan: Plan) -> str:
    options = plan.options
    most = max(option.replicas for option in options) * 1.05
    values = [option.ttft_p95_ms for option in options] + [plan.question.slo_p95_ms]
    low, high = math.log(min(values) * 0.8), math.log(max(values) * 1.25)

    def x(replicas: float) -> float:
        return LEFT + replicas / most * (WIDTH - LEFT - RIGHT)

    def y(value_ms: float) -> float:
        return TOP + (high - math.log(value_ms)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    dots = "".join(
        f'<circle class="{"on" if o.cache else "off"}" r="5" cx="{x(o.replicas):.1f}" '
        f'cy="{y(o.ttft_p95_ms):.1f}"><title>{o.replicas} replicas, '
        f"{o.ttft_p95_ms:,.0f} ms</title></circle>"
        for o in options
    )
    line = " ".join(f"{x(o.replicas):.1f},{y(o.ttft_p95_ms):.1f}" for o in pareto(options))
    target = y(plan.question.slo_p95_ms)
    ticks = "".join(
        f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{n}</text>'
        for n in sorted({o.replicas for o in pareto(options)})
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="p95 time to the first token against replicas; the table has the numbers">'
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{target:.1f}" '
        f'y2="{target:.1f}"/><text x="{LEFT}" y="{target - 5:.1f}">'
        f"{plan.question.slo_p95_ms:,.0f} ms</text>"
        f'<polyline class="front" points="{line}"/>{dots}{ticks}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">replicas</text></svg>'
    )


def _table(plan: Plan) -> str:
    rows = "".join(
        f"<tr><td>{'on' if o.cache else 'off'}</td><td>{o.replicas}</td>"
        f"<td>{o.ttft_p50_ms:,.0f}</td><td>{o.ttft_p95_ms:,.0f}</td><td>{o.busy:.0%}</td>"
        f"<td>{o.cost_per_day:,.2f}</td><td>{html.escape('; '.join(o.reasons))}</td></tr>"
        for o in plan.options
    )
    heads = ("cache", "replicas", "p50 ms", "p95 ms", "busy", "cost a day", "why not")
    return (
        "<table><thead><tr>"
        + "".join(f"<th>{head}</th>" for head in heads)
        + f"</tr></thead><tbody>{rows}</tbody></table>"
    )
