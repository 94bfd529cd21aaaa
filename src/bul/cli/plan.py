"""`bul plan`: from a load and a target to a fleet, its cost and the files to deploy it."""

from __future__ import annotations

import dataclasses
import pathlib
import secrets
import typing
from collections.abc import Mapping

import click

if typing.TYPE_CHECKING:
    from bul.planner.plan import Option, Plan, Question

__all__ = ["command"]

SEED = 1


@click.command(name="plan")
@click.option("--rps", type=click.FloatRange(min=0.0, min_open=True), required=True)
@click.option("--prompt-tokens", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1), default=150, show_default=True)
@click.option(
    "--shared-prefix",
    type=click.FloatRange(0.0, 1.0),
    default=0.0,
    show_default=True,
    help="Share of a prompt's tokens that requests before had too.",
)
@click.option(
    "--slo-p95-ms",
    type=click.FloatRange(min=0.0, min_open=True),
    default=500.0,
    show_default=True,
    help="95th percentile of the time to the first token.",
)
@click.option("--phase", type=click.IntRange(1, 4), help="[default: by the guide's limits]")
@click.option("--scenario", default="variable", show_default=True)
@click.option(
    "--profile",
    default="8b",
    show_default=True,
    help="embedded, 8b, 70b, or a file of `bul bench --profile-out`.",
)
@click.option("--price-per-replica-hour", type=click.FloatRange(0.0), default=0.0)
@click.option("--cold-start-s", type=click.FloatRange(0.0), default=60.0, show_default=True)
@click.option("--length-cv", type=click.FloatRange(0.0, 5.0), default=0.7, show_default=True)
@click.option("--arrival-cv", type=click.FloatRange(0.05, 5.0), default=1.0, show_default=True)
@click.option(
    "--autoscaler",
    type=click.Choice(["bul", "hpa", "keda"]),
    default="bul",
    show_default=True,
    help="Who scales on Kubernetes: BUL's own loop, or a manifest for one of these.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Write the files to deploy into this folder; it must be new or empty.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(out: pathlib.Path | None, autoscaler: str, as_json: bool, **given: typing.Any) -> int:
    """How many replicas, at what cost, with which settings; and the files to deploy them.

    Exit code 1 if no number of replicas holds the target.

    Example: bul plan --rps 300 --shared-prefix 0.6 --price-per-replica-hour 2

    Example: bul plan --rps 800 --phase 3 --scenario traffic-spikes --out deploy
    """
    import msgspec

    from bul.planner.plan import make_plan
    from bul.planner.predict import Prediction, Workload, predict
    from bul.simulator.replica import ReplicaProfile

    if out is not None and out.exists() and any(out.iterdir()):
        raise click.UsageError(f"{out} is not empty: nothing is overwritten")

    def simulate(
        workload: Workload, profile: ReplicaProfile, replicas: int, cache: bool
    ) -> Prediction:
        click.echo(f"simulating {replicas} replicas", err=True)
        return predict(workload, profile, replicas=replicas, cache=cache, seed=SEED)

    plan = make_plan(_question(given), simulate)
    document = _document(plan)
    if out is not None:
        _write(out, plan, document, "" if autoscaler == "bul" else autoscaler)
    if as_json:
        click.echo(msgspec.json.encode(document).decode())
    else:
        _print(plan)
        if out is not None:
            click.echo(f"wrote {out}/; {out}/README.md says how to go on")
    return 0 if plan.feasible else 1


def _question(given: Mapping[str, typing.Any]) -> Question:
    from bul.cli.profiles import profile_named
    from bul.planner.phases import PHASES, phase_for, scenario_named
    from bul.planner.plan import Question
    from bul.planner.predict import Workload

    names = ("prompt_tokens", "output_tokens", "shared_prefix", "length_cv", "arrival_cv")
    return Question(
        workload=Workload(
            requests_per_second=given["rps"], **{name: given[name] for name in names}
        ),
        slo_p95_ms=given["slo_p95_ms"],
        phase=PHASES[given["phase"] - 1] if given["phase"] else phase_for(given["rps"]),
        scenario=scenario_named(given["scenario"]),
        profile=profile_named(given["profile"]),
        price_per_replica_hour=given["price_per_replica_hour"],
        cold_start_s=given["cold_start_s"],
    )


def _document(plan: Plan) -> dict[str, object]:
    question = plan.question
    return {
        "feasible": plan.feasible,
        "phase": question.phase.number,
        "scenario": question.scenario.name,
        "profile": question.profile.name,
        "profile_measured": question.profile.measured,
        "fleet": plan.fleet and dataclasses.asdict(plan.fleet),
        "fleet_without_cache": plan.fleet_without_cache
        and dataclasses.asdict(plan.fleet_without_cache),
        "cache": dict(plan.cache),
        "figures": [dataclasses.asdict(figure) for figure in plan.figures],
        "options": [_option(option) for option in plan.options],
        "findings": list(plan.findings),
    }


def _option(option: Option) -> dict[str, object]:
    return {**dataclasses.asdict(option), "feasible": option.feasible}


def _write(out: pathlib.Path, plan: Plan, document: Mapping[str, object], autoscaler: str) -> None:
    import msgspec

    from bul.accounts.keys import hash_key, make_key
    from bul.planner.page import render_page
    from bul.planner.readme import render_readme
    from bul.planner.render import Secrets, render_files
    from bul.service.auth import OPERATOR

    keys = {OPERATOR: make_key(), "client": make_key()}
    private = {f"{name}.key": f"{key}\n" for name, key in keys.items()}
    kept = Secrets(
        hashes={name: hash_key(key) for name, key in keys.items()},
        cache_secret=secrets.token_urlsafe(32),
        valkey_password=secrets.token_urlsafe(24),
        operator_key=keys[OPERATOR],
    )
    files = dict(render_files(plan, kept, autoscaler=autoscaler))
    files["prometheus/operator.key"] = private.pop("operator.key")
    files |= private
    files["plan.json"] = msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"
    files["plan.html"] = render_page(plan)
    files["README.md"] = render_readme(plan, files)
    # The folder is private, its files are not: a container's user, which is nobody here, reads
    # those that are mounted one by one, and no one else gets through the folder.
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)
    for name, text in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)


def _print(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    question = plan.question
    console.print(
        f"phase {question.phase.number} ({question.phase.title}), {question.scenario.name}, "
        f"profile {question.profile.name} "
        f"({'measured' if question.profile.measured else 'assumed'})"
    )
    table = Table("cache", "replicas", "p50 ms", "p95 ms", "busy", "cost a day", "why not")
    for option in plan.options:
        table.add_row(
            "on" if option.cache else "off",
            str(option.replicas),
            f"{option.ttft_p50_ms:,.0f}",
            f"{option.ttft_p95_ms:,.0f}",
            f"{option.busy:.0%}",
            f"{option.cost_per_day:,.2f}",
            "; ".join(option.reasons),
        )
    console.print(table)
    for figure in plan.figures:
        value = f"{figure.value:,.6g}" if isinstance(figure.value, float) else str(figure.value)
        console.print(f"{figure.name:38} {value:>14} {figure.unit:28} {figure.source}")
    for finding in plan.findings:
        console.print(f"- {finding}")
    if plan.fleet is not None:
        fleet = plan.fleet
        console.print(
            f"deploy {fleet.replicas_min} to {fleet.replicas_max} replicas, "
            f"{fleet.spares} of them spare"
        )
