"""`bul check`: the guide's checklist against a live region, each item with its evidence."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
import typing
from collections import Counter
from pathlib import Path

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting
from bul.cli.state_folder import DEFAULT_FOLDER

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bul.config import Settings
    from bul.doctor.evidence import Looked
    from bul.doctor.findings import Baseline, Finding

__all__ = ["command"]

_MARKS = {"pass": "✓", "fail": "✗", "unknown": "?"}


def _looking(command: Callable[..., typing.Any]) -> Callable[..., typing.Any]:
    flags: list[Callable[..., typing.Any]] = [
        click.option("--url", default="http://127.0.0.1:8000", show_default=True),
        click.option(
            "--key-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A file that holds the operator's key.",
        ),
        setting("up.state_dir", "--state-dir", help="Of the region, when it runs on this host."),
        click.option(
            "--baseline",
            type=click.Path(dir_okay=False, path_type=Path),
            help="[default: baseline.json in the state folder]",
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


@click.group(name="check")
def command() -> None:
    """The guide's thirteen items, each checked on the live system.

    Harmless: pages are read and some tens of short prompts are asked. Exit code 1 if an item
    fails; what could not be seen is unknown, with the reason, and no failure.

    Example: bul check baseline && bul check all --prometheus http://127.0.0.1:9090
    """


def _group(name: str, text: str) -> None:
    @command.command(name=name, help=f"{text}\n\nExample: bul check {name} --json")
    @_looking
    @click.option("--prometheus", default="", help="URL of the Prometheus that watches it.")
    @click.option("--session-header", default="x-session-id", show_default=True)
    @setting("scale.price_per_replica_hour", "--price-per-replica-hour")
    @setting("accounts.database_url", "--database-url", help="Has the replica-hours.")
    @click.option("--budget-per-day", type=click.FloatRange(0.0))
    @click.option(
        "--markdown",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write a report as well.",
    )
    def group_command(as_json: bool, markdown: Path | None, **given: typing.Any) -> int:
        return _check(name, as_json=as_json, markdown=markdown, **given)


for _name, _text in (
    ("pre", "Before scaling: baseline, limits, balancer, health, monitoring."),
    ("horizontal", "Several replicas: database, shared cache, sessions, coherency."),
    ("post", "After scaling: metrics, load, degradation, costs."),
    ("all", "All thirteen items."),
):
    _group(_name, _text)


@command.command()
@_looking
def baseline(**given: typing.Any) -> int:
    """Record how fast the region answers now, for later comparisons.

    Example: bul check baseline --url http://127.0.0.1:8000
    """
    import msgspec

    from bul.doctor.evidence import probe_ttfts
    from bul.errors import BulError

    file = _baseline_file(given)
    try:
        ttfts = asyncio.run(probe_ttfts(_looked(given), _say))
        document = {"at_s": time.time(), "url": given["url"], "ttft_ms": ttfts}
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.encode(document))
    except ValueError as error:
        raise BulError(f"no baseline: {error}", hint="is the region up? bul check pre") from error
    except OSError as error:
        raise BulError(f"cannot write {file}: {error.strerror}", hint="--baseline FILE") from error
    median = sorted(ttfts)[len(ttfts) // 2]
    if given["as_json"]:
        shown = document | {"file": str(file)}
        click.echo(msgspec.json.encode(shown).decode())
    else:
        click.echo(f"{len(ttfts)} probes, median {median:.1f} ms to the first token: {file}")
    return 0


def _check(name: str, *, as_json: bool, markdown: Path | None, **given: typing.Any) -> int:
    from bul.doctor.checks import GROUPS, run_checks
    from bul.doctor.evidence import look
    from bul.errors import BulError

    evidence = asyncio.run(look(_looked(given), _say, time.time()))
    findings = run_checks(evidence, GROUPS if name == "all" else (name,))
    if markdown is not None:
        try:
            markdown.write_text(_report(given["url"], findings), encoding="utf-8")
        except OSError as error:
            raise BulError(f"cannot write {markdown}: {error.strerror}") from error
    if as_json:
        import msgspec

        items = [dataclasses.asdict(finding) for finding in findings]
        click.echo(msgspec.json.encode({"url": given["url"], "items": items}).decode())
    else:
        for finding in findings:
            mark = _MARKS[finding.verdict]
            click.echo(f"{mark} {finding.group:<10} {finding.title}: {finding.evidence}")
            if finding.next:
                click.echo(f"  {'':<10} next: {finding.next}")
        counts = Counter[str](finding.verdict for finding in findings)
        click.echo(", ".join(f"{counts[verdict]} {verdict}" for verdict in _MARKS))
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def _looked(given: typing.Mapping[str, typing.Any]) -> Looked:
    from bul.cli.live import read_key
    from bul.doctor.evidence import Looked

    settings = load_settings(given)
    limits, limits_reason = _limits(settings.up.state_dir, given["url"])
    known, baseline_reason = _read_baseline(_baseline_file(given))
    price, hours, basis = settings.scale.price_per_replica_hour or None, None, ""
    if price is not None:
        hours, basis = _replica_hours(settings)
    names = ("prometheus", "session_header", "budget_per_day")
    return Looked(
        url=given["url"].rstrip("/"),
        key=read_key(given["key_file"]),
        salt=secrets.token_hex(8),
        limits=limits,
        limits_reason=limits_reason,
        baseline=known,
        baseline_reason=baseline_reason,
        price_per_replica_hour=price,
        replica_hours_per_day=hours,
        hours_basis=basis,
        **{name: given[name] for name in names if name in given},
    )


def _limits(state_dir: str, url: str) -> tuple[tuple[int, int] | None, str]:
    """By the region's own word, over its control socket."""
    from bul.cli.control import ask_region
    from bul.errors import DriverError

    try:
        status = ask_region(state_dir, "status", _say)
    except DriverError as error:
        return None, str(error)
    if status["url"] != url.rstrip("/"):
        return None, f"the region in {state_dir or DEFAULT_FOLDER} is {status['url']}"
    low, high = status["limits"]
    return (low, high), ""


def _replica_hours(settings: Settings) -> tuple[float | None, str]:
    """Of a day of this region, by its ledger, and what that rests on; None with the reason."""
    from bul.accounts.costs import SPAN_S_MIN, last_day
    from bul.accounts.records import read_replica_hours
    from bul.cli.accounts import open_if_there, region_name
    from bul.errors import AccountsUnavailable

    region, now_s = region_name(settings), time.time()
    try:
        engine = open_if_there(settings)
    except AccountsUnavailable as error:
        return None, f"since {error.args[0]}"
    if engine is None:
        return None, "since there is no ledger here"
    found = last_day(read_replica_hours(engine, region=region), now_s)
    engine.dispose()
    if found is None:
        least = f"{SPAN_S_MIN / 60:.0f} minutes"
        return None, f"since the ledger has no {least} of region {region}"
    said = f"{found.replica_hours:,.2f} replica-hours in the last {found.span_s / 3600:.1f} h"
    return found.per_day, f"{said}, by the ledger"


def _baseline_file(given: typing.Mapping[str, typing.Any]) -> Path:
    chosen: Path | None = given["baseline"]
    return chosen or Path(load_settings(given).up.state_dir or DEFAULT_FOLDER) / "baseline.json"


def _read_baseline(file: Path) -> tuple[Baseline | None, str]:
    import msgspec

    from bul.doctor.findings import Baseline

    try:
        return msgspec.json.decode(file.read_bytes(), type=Baseline), ""
    except FileNotFoundError:
        return None, f"there is no {file}"
    except (OSError, msgspec.MsgspecError) as error:
        return None, f"{file} cannot be read: {error}"


def _say(text: str, **_facts: object) -> None:
    click.echo(text, err=True)


def _report(url: str, findings: Sequence[Finding]) -> str:
    rows = "\n".join(
        f"| {f.group} | {f.title} | **{f.verdict}** | {_cell(f.evidence)} | {_cell(f.next)} |"
        for f in findings
    )
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    head = "| group | item | verdict | evidence | next |\n|---|---|---|---|---|"
    return f"# Checklist of {url}\n\n{made}\n\n{head}\n{rows}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
