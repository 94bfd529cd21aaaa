"""The table of a comparison: one row per policy and setting, the chosen one marked.

Refuses to choose with knowledge of the second part: `chosen` looks at the first part only.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from bul.scaling.registry import knob_of, make_policy
from bul.simulator.compare import Score, hours_at

__all__ = ["SHARES", "choose", "curves", "rows"]

SHARES = (0.005, 0.01, 0.02, 0.05)
Scores = Mapping[float, Sequence[Score]]
"""Per setting, one score per seed."""


def choose(scores: Scores, violation_max: float) -> float:
    """Fewest first-part hours at no more than `violation_max`; else the least violating one.

    Of a short first part, the violations that it can vouch for (`Score.first_violation_bound`).
    """
    kept = [s for s in scores if _mean(scores[s], "first_violation_bound") <= violation_max]
    if kept:
        return min(kept, key=lambda s: _mean(scores[s], "first_replica_hours"))
    return min(scores, key=lambda s: _mean(scores[s], "first_violation_share"))


def rows(
    by_policy: Mapping[str, Scores], violation_max: float
) -> tuple[list[dict[str, object]], dict[str, dict[str, float | None]]]:
    """The rows, and per policy its `hours_at`."""
    table: list[dict[str, object]] = []
    hours = {name: curves(scores) for name, scores in by_policy.items()}
    for name, scores in by_policy.items():
        chosen = choose(scores, violation_max)
        for setting in sorted(scores):
            row = _row(scores[setting])
            table.append(
                {
                    "policy": name,
                    "setting": setting,
                    "knob": "margin" if name == "oracle" else knob_of(name),
                    "default": setting == _default(name, violation_max),
                    "chosen": setting == chosen,
                    **row,
                    "hours_at": hours[name],
                }
            )
    return table, hours


def curves(scores: Scores) -> dict[str, float | None]:
    """Replica-hours at each of SHARES, from the policy's own curve of settings."""
    points = [
        (_mean(scores[s], "violation_share"), _mean(scores[s], "replica_hours"))
        for s in sorted(scores)
    ]
    found = {f"{share:g}": hours_at(points, share) for share in SHARES}
    return {share: None if h is None else round(h, 2) for share, h in found.items()}


def _default(name: str, violation_max: float) -> float | None:
    if name == "adaptive":
        return violation_max
    if name in {"oracle", "fixed"}:
        return None
    return float(getattr(make_policy(name), knob_of(name)))


def _row(scores: Sequence[Score]) -> dict[str, object]:
    shares = [score.violation_share for score in scores]
    hours = [score.replica_hours for score in scores]
    return {
        "violation_share": round(statistics.fmean(shares), 6),
        "worst_5min_share": round(max(score.worst_5min_share for score in scores), 6),
        "replica_hours": round(statistics.fmean(hours), 3),
        "ups": round(_mean(scores, "ups")),
        "downs": round(_mean(scores, "downs")),
        "reversals": round(_mean(scores, "reversals")),
        "seeds_spread": {
            "violation_share": round(max(shares) - min(shares), 6),
            "replica_hours": round(max(hours) - min(hours), 3),
        },
        "first_violation_share": round(_mean(scores, "first_violation_share"), 6),
        "first_violation_bound": round(_mean(scores, "first_violation_bound"), 6),
        "first_replica_hours": round(_mean(scores, "first_replica_hours"), 3),
    }


def _mean(scores: Sequence[Score], field: str) -> float:
    return statistics.fmean(float(getattr(score, field)) for score in scores)
