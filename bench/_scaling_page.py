"""The scalers' table as Markdown: what `make bench-scaling` found, for docs/reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["page"]

RULES = ("hpa", "ray", "kpa", "keda", "guide", "fixed")


def page(parts: Mapping[str, Mapping[str, Any]], seeds: Mapping[str, int]) -> str:
    """parts: by "profile cold_start", with `rows` and `hours_at`. seeds: how many, by part."""
    lines = ["## Replica-hours of the second week at 1 % and at 2 % of slow requests", ""]
    lines += [*_hours(parts, "0.01"), "", *_hours(parts, "0.02"), ""]
    lines += ["## Tuned on the first week, frozen for the second", "", *_drift(parts), ""]
    for profile in dict.fromkeys(key.split()[0] for key in parts):
        colds = [key.split()[1] for key in parts if key.startswith(f"{profile} ")]
        lines += [f"## Every setting, profile {profile}", "", *_settings(parts, profile, colds), ""]
    lines += ["Seeds: " + ", ".join(f"{part} {count}" for part, count in seeds.items())]
    return "\n".join(lines) + "\n"


def _hours(parts: Mapping[str, Mapping[str, Any]], share: str) -> list[str]:
    title = f"at {100 * float(share):g} %"
    lines = [
        f"| {title} | adaptive | " + " | ".join(RULES) + " | oracle | less than the best rule |",
        "|---|" + "---:|" * (len(RULES) + 3),
    ]
    for key, part in parts.items():
        at = {name: hours.get(share) for name, hours in part["hours_at"].items()}
        rivals = [at[name] for name in RULES if at.get(name) is not None]
        own = at.get("adaptive")
        less = f"{1 - own / min(rivals):.1%}" if own and rivals else "-"
        cells = [_number(at.get(name)) for name in ("adaptive", *RULES, "oracle")]
        lines.append(f"| {key.replace(' ', ', ')} s | " + " | ".join(cells) + f" | {less} |")
    return lines


def _drift(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = ("adaptive", *RULES)
    lines = ["| chosen: first week -> second | " + " | ".join(names) + " |"]
    lines += ["|---|" + "---:|" * len(names)]
    for key, part in parts.items():
        chosen = {row["policy"]: row for row in part["rows"] if row["chosen"]}
        cells = [
            f"{row['first_violation_share']:.2%} -> {row['violation_share']:.2%}, "
            f"{row['replica_hours']:.0f} h"
            if (row := chosen.get(name))
            else "-"
            for name in names
        ]
        lines.append(f"| {key.replace(' ', ', ')} s | " + " | ".join(cells) + " |")
    return lines


def _settings(
    parts: Mapping[str, Mapping[str, Any]], profile: str, colds: Sequence[str]
) -> list[str]:
    lines = [
        "| policy, setting | " + " | ".join(f"{cold} s" for cold in colds) + " |",
        "|---|" + "---|" * len(colds),
    ]
    found: dict[tuple[str, float], dict[str, str]] = {}
    for cold in colds:
        for row in parts[f"{profile} {cold}"]["rows"]:
            mark = " *" if row["chosen"] else ""
            found.setdefault((row["policy"], row["setting"]), {})[cold] = (
                f"{row['first_violation_share']:.2%} / {row['violation_share']:.2%} / "
                f"{row['worst_5min_share']:.0%}, {row['replica_hours']:.0f} h, "
                f"{row['reversals']}{mark}"
            )
    lines += [
        f"| {name} {setting:g} | " + " | ".join(cells.get(cold, "-") for cold in colds) + " |"
        for (name, setting), cells in found.items()
    ]
    lines += ["", "Slow requests in week one / two / worst five minutes, hours, turns; * chosen."]
    return lines


def _number(hours: float | None) -> str:
    return "-" if hours is None else f"{hours:,.0f}"
