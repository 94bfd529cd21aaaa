"""`bul scale simulate`: which scaler keeps the target with the fewest replica-hours?

Refuses figures without their terms: the document names trace, scale, profile, seeds, split and
whether the replay was exact or coarse, and with which error.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bul.simulator.arrivals import Arrivals, RateWindows
    from bul.simulator.race import CoarseError, Outcome, Progress
    from bul.simulator.replica import ReplicaProfile

__all__ = ["simulate_command"]

POLICIES_DEFAULT = "adaptive,hpa,kpa,ray,keda,guide,fixed,oracle"
SCALE_OF_WINDOWS = 0.05


@click.command("simulate")
@click.option(
    "--trace",
    required=True,
    help="Rate windows or an Azure trace (CSV), a block trace (JSON lines), all maybe gzipped; "
    "or synthetic-traffic-spikes, synthetic-constant-high, synthetic-variable.",
)
@click.option("--policy", default=POLICIES_DEFAULT, show_default=True, help="Names, or `all`.")
@click.option("--profile", default="8b", show_default=True, help="embedded, 8b, 70b, or a file.")
@click.option(
    "--scale",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Times the trace's rate. [default: 0.05 for rate windows, 1 for others]",
)
@click.option("--slo-ttft-ms", type=click.FloatRange(1.0), default=500.0, show_default=True)
@click.option(
    "--violation-max",
    type=float,
    default=0.01,
    show_default=True,
    help="Share of requests whose first token may come later than the target.",
)
@click.option("--cold-start-s", type=click.FloatRange(0.0), default=120.0, show_default=True)
@click.option("--min-replicas", type=click.IntRange(1), default=1, show_default=True)
@click.option("--max-replicas", type=click.IntRange(1), default=40, show_default=True)
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True)
@click.option(
    "--tune-first",
    type=float,
    default=0.5,
    show_default=True,
    help="Share of the time that chooses settings; the rest is scored.",
)
@click.option("--days", type=click.FloatRange(min=0.0, min_open=True), help="Only the first days.")
@click.option("--coarse", is_flag=True, help="A cheaper replay; its error is shown.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True, path_type=pathlib.Path),
    help="Write the curves as a self-contained HTML page.",
)
def simulate_command(**given: Any) -> None:
    """Replay a trace through scalers: violations against replica-hours.

    Example: bul scale simulate --trace windows.csv.gz --policy adaptive,hpa --days 4 --coarse

    Example: bul scale simulate --trace synthetic-traffic-spikes --policy adaptive,guide --json
    """
    from bul.cli.profiles import profile_named
    from bul.simulator.compare import COMPARED, Experiment
    from bul.simulator.race import race
    from bul.simulator.table import rows

    experiment = Experiment(
        profile=profile_named(given["profile"]),
        bounds=_bounds(given["min_replicas"], given["max_replicas"]),
        cold_start_s=given["cold_start_s"],
        slo_ttft_s=given["slo_ttft_ms"] / 1000.0,
        violation_max=given["violation_max"],
        tune_first=given["tune_first"],
        coarse=given["coarse"],
    )
    workload, scale = _workload(given["trace"], given["scale"], given["days"])
    names = COMPARED if given["policy"] == "all" else _names(given["policy"])
    with _progress() as progress:
        outcome = race(
            workload,
            experiment,
            names,
            seeds=range(given["seeds"]),
            scale=scale,
            days=given["days"],
            progress=progress,
        )
    table, hours = rows(outcome.scores, experiment.violation_max)
    document = {**_terms(given, scale, experiment.profile, outcome), "rows": table}
    document |= {"hours_at": hours, "coarse_error": [_error(e) for e in outcome.coarse_errors]}
    if given["plot"] is not None:
        _plot(given["plot"], document, table)
    if given["as_json"]:
        _print_json(document)
    else:
        _print_table(document, table, hours)


def _names(policy: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in policy.split(",") if name.strip()))


def _bounds(low: int, high: int) -> Any:
    from bul.scaling.bounds import Bounds

    return Bounds(min_replicas=low, max_replicas=high)


def _workload(
    trace: str, scale: float | None, days: float | None
) -> tuple[RateWindows | Arrivals, float]:
    from bul.simulator.arrivals import RateWindows, read_workload
    from bul.simulator.shapes import SHAPES, shape

    if trace in SHAPES:
        return shape(trace, days or 1.0), 1.0 if scale is None else scale
    workload = read_workload(pathlib.Path(trace))
    if scale is None:
        scale = SCALE_OF_WINDOWS if isinstance(workload, RateWindows) else 1.0
    return workload, scale


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("drawing arrivals", total=None)

        def show(label: str, done: int, total: int) -> None:
            bar.update(task, description=label, completed=done, total=total)

        yield show


def _terms(
    given: Mapping[str, Any], scale: float, profile: ReplicaProfile, outcome: Outcome
) -> dict[str, object]:
    return {
        "trace": pathlib.Path(given["trace"]).name,
        "synthetic": given["trace"].startswith("synthetic-"),
        "simulated": "coarse" if given["coarse"] else "exact",
        "profile": profile.name,
        "profile_measured": profile.measured,
        "scale": scale,
        "slo_ttft_ms": given["slo_ttft_ms"],
        "violation_max": given["violation_max"],
        "cold_start_s": given["cold_start_s"],
        "min_replicas": given["min_replicas"],
        "max_replicas": given["max_replicas"],
        "tune_first": given["tune_first"],
        "seeds": list(range(given["seeds"])),
        "requests": outcome.requests,
        "hours": round(outcome.duration_s / 3600.0, 3),
    }


def _error(error: CoarseError) -> dict[str, object]:
    pairs = {"violation_share": error.violation_share, "replica_hours": error.replica_hours}
    return {
        "policy": error.policy,
        "setting": error.setting,
        "requests": error.requests,
        **{
            name: {"coarse": round(coarse, 6), "exact": round(exact, 6)}
            for name, (coarse, exact) in pairs.items()
        },
    }


def _plot(
    path: pathlib.Path, document: Mapping[str, object], table: list[dict[str, object]]
) -> None:
    from bul.simulator.plot import render

    note = (
        f"{document['trace']} at {document['scale']} of its rate, profile {document['profile']}, "
        f"cold start {document['cold_start_s']} s, {document['simulated']} replay; scored on what "
        "follows the tuning part. The large dots are the settings that tuning chose."
    )
    try:
        path.write_text(render("Violations against replica-hours", note, table), encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), hint=error.strerror) from error


def _print_json(document: Mapping[str, object]) -> None:
    import msgspec

    click.echo(msgspec.json.encode(document).decode())


def _print_table(
    document: Mapping[str, object],
    rows: list[dict[str, object]],
    hours: Mapping[str, Mapping[str, float | None]],
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("policy", "setting", "", "violations", "worst 5 min", "replica-hours", "turns")
    for row in rows:
        table.add_row(
            str(row["policy"]),
            f"{row['setting']:g}",
            "chosen" if row["chosen"] else "",
            f"{row['violation_share']:.2%}",
            f"{row['worst_5min_share']:.1%}",
            f"{row['replica_hours']:,.1f}",
            str(row["reversals"]),
        )
    console.print(table)
    at = Table("replica-hours at", "0.5 %", "1 %", "2 %", "5 %")
    for name, shares in hours.items():
        at.add_row(name, *("-" if h is None else f"{h:,.0f}" for h in shares.values()))
    console.print(at)
    console.print(f"{document['simulated']} replay of {document['requests']:,} requests")
    errors: Any = document["coarse_error"]
    for error in errors:
        share, used = error["violation_share"], error["replica_hours"]
        console.print(
            f"coarse against exact, {error['policy']} {error['setting']:g}: violations "
            f"{share['coarse']:.2%} / {share['exact']:.2%}, hours {used['coarse']:.1f} / "
            f"{used['exact']:.1f}"
        )
