"""The highest rate that an endpoint sustains: doubles until it does not, then halves the gap.

Refuses to run on: at most STEPS_MAX steps, each of bounded time, and it stops by itself.

A step is sustained when the requests in flight did not grow from its first quarter to its end (by
more than GROWTH_SHARE of those that came, and more than chance: twice the root of what an unloaded
service would hold, by Little's law), at most ERROR_SHARE_MAX failed, and GOOD_SHARE kept the SLO.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Callable
from typing import Any

from bul.bench.load import Run
from bul.bench.report import Slo, summarise

__all__ = ["Step", "judge", "next_rate", "sweep"]

STEPS_MAX = 20
RATE_MAX = 100_000.0
RESOLUTION = 1.08
"""The sweep ends when the lowest failed rate is at most this times the highest sustained one."""
GROWTH_SHARE = 0.1
ERROR_SHARE_MAX = 0.01
GOOD_SHARE = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One rate. completed_per_s: successful replies in the step's last three quarters, a second."""

    rate: float
    sustained: bool
    reason: str
    completed_per_s: float
    summary: dict[str, Any]


def next_rate(steps: list[Step], start: float, resolution: float = RESOLUTION) -> float | None:
    """Where to go from here; None when the answer is known. Pure."""
    sustained = max((step.rate for step in steps if step.sustained), default=0.0)
    failed = min((step.rate for step in steps if not step.sustained), default=math.inf)
    if len(steps) >= STEPS_MAX or failed <= sustained * resolution:
        return None
    if not steps:
        return start
    if math.isinf(failed):
        return sustained * 2 if sustained * 2 <= RATE_MAX else None
    if sustained == 0.0:
        return failed / 4 if failed > start / 1000 else None
    return math.sqrt(sustained * failed)


def judge(rate: float, run: Run, step_s: float, slo: Slo) -> Step:
    """Whether `run`, `step_s` long at `rate`, was sustained. Pure."""
    begin_s, end_s = run.started_s + step_s / 4, run.started_s + step_s
    due = sum(begin_s <= sample.intended_s < end_s for sample in run.samples)
    good = [sample for sample in run.samples if not sample.error]
    done = sum(begin_s <= sample.done_s < end_s for sample in good)
    growth = _in_flight(run, end_s) - _in_flight(run, begin_s)
    unloaded = rate * min((sample.done_s - sample.sent_s for sample in good), default=0.0)
    summary = summarise(run, slo)
    errors = {kind: n for kind, n in summary["errors"].items() if kind != "unfinished"}
    reason = ""
    if sum(errors.values()) > ERROR_SHARE_MAX * len(run.samples):
        reason = f"{sum(errors.values())} of {len(run.samples)} failed: {errors}"
    elif growth > max(GROWTH_SHARE * due, 2 * math.sqrt(unloaded) + 1):
        reason = f"{growth} of {due} requests more in flight at the end than at first"
    elif summary["goodput_share"] < GOOD_SHARE and slo != Slo():
        reason = f"{summary['goodput_share']:.0%} kept the SLO, {GOOD_SHARE:.0%} wanted"
    return Step(
        rate=rate,
        sustained=not reason,
        reason=reason,
        completed_per_s=done / (end_s - begin_s),
        summary=summary,
    )


def _in_flight(run: Run, at_s: float) -> int:
    return sum(sample.intended_s <= at_s < sample.done_s for sample in run.samples)


async def sweep(
    run_at: Callable[[float, int], Awaitable[Run]],
    *,
    start: float,
    step_s: float,
    slo: Slo,
    on_step: Callable[[Step], None],
    resolution: float = RESOLUTION,
) -> list[Step]:
    """Every step that was made, in order. run_at(rate, step's number) runs `step_s` at `rate`."""
    steps: list[Step] = []
    while (rate := next_rate(steps, start, resolution)) is not None:
        run = await run_at(rate, len(steps))
        if run.interrupted:
            break
        steps.append(judge(rate, run, step_s, slo))
        on_step(steps[-1])
    return steps
