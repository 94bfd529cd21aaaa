"""What `bul bench` shows: live progress on stderr, the report on stdout. Refuses to judge."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Self

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bul.bench.client import Sample
from bul.bench.load import REQUESTS_MAX, Limits
from bul.bench.sweep import Step

__all__ = ["Screen", "show"]

SHOW_EVERY = 10
"""Progress is touched once per so many requests: drawing must not cost what it shows."""


class Screen:
    """Progress of one command; a context manager. Silent where stderr is no terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._console = Console(stderr=True)
        self._progress = Progress(
            *columns,
            console=self._console,
            transient=True,
            refresh_per_second=4,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)
        self._label, self._done, self._failed, self._ttft_s = "", 0, 0, 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, label: str, limits: Limits) -> None:
        total = limits.requests + limits.warmup if limits.requests < REQUESTS_MAX else None
        self._label, self._done, self._failed = label, 0, 0
        self._progress.update(self._task, description=label, completed=0, total=total)

    def done(self, sample: Sample) -> None:
        self._done += 1
        if sample.error:
            self._failed += 1
        else:
            self._ttft_s += 0.1 * (sample.ttft_s - self._ttft_s)
        if self._done % SHOW_EVERY == 0:
            said = f"{self._label}: {self._done:,} done, {self._failed:,} failed, "
            said += f"TTFT about {self._ttft_s * 1000:,.0f} ms"
            self._progress.update(self._task, description=said, completed=self._done)

    def step(self, step: Step) -> None:
        verdict = "sustained" if step.sustained else f"not sustained: {step.reason}"
        self.say(f"{step.rate:,.1f} requests/s: {step.completed_per_s:,.1f}/s done, {verdict}")

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)


def show(report: Mapping[str, Any], *, as_json: bool) -> None:
    """The report on stdout, warnings on stderr."""
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        console = Console()
        if "profile" in report:
            _print_profile(console, report)
        elif "steps" in report:
            _print_sweep(console, report)
        else:
            _print_runs(console, report)
    for warning in report.get("warnings", ()):
        click.echo(f"bul: warning: {warning}", err=True)


def _number(value: Any) -> str:
    if value is None:
        return "no data"
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}"


def _print_runs(console: Console, report: Mapping[str, Any]) -> None:
    console.print(report["load"], highlight=False)
    for run in report["runs"]:
        table = Table("ms", "p50", "p90", "p95", "95 % interval", "p99", "max")
        for label, key in (("TTFT", "ttft_ms"), ("between tokens", "itl_ms"), ("E2E", "e2e_ms")):
            spread = run[key]
            reach = f"{_number(spread['p95_low'])} - {_number(spread['p95_high'])}"
            cells = [_number(spread[name]) for name in ("p50", "p90", "p95", "p99", "max")]
            table.add_row(label, *cells[:3], reach, *cells[3:])
        console.print(table)
        console.print(_rates(run), highlight=False)
        if run["errors"]:
            found = ", ".join(f"{kind} {count:,}" for kind, count in run["errors"].items())
            console.print(f"errors: {found}", highlight=False)
    for kind, said in report["errors_said"].items():
        console.print(f"{kind}: {said}", highlight=False, markup=False)
    if report["repeats"]:
        _print_repeats(console, report["repeats"])
    if report["interrupted"]:
        console.print("interrupted: the figures are of what ran")


def _rates(run: Mapping[str, Any]) -> str:
    cached = run["cached_token_share"]
    generator = run["generator"]
    return (
        f"{run['ok']:,} of {run['requests']:,} ok in {run['seconds']:,.1f} s: "
        f"{_number(run['requests_per_s'])} requests/s, goodput {_number(run['goodput_per_s'])}/s, "
        f"{_number(run['output_tokens_per_s'])} output tokens/s, "
        f"{'no data' if cached is None else f'{cached:.1%}'} of prompt tokens cached; "
        f"generator: {generator['cpu_share']:.0%} of a core, "
        f"{_number(generator['cpu_us_per_request'])} us per request"
    )


def _print_repeats(console: Console, repeats: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table("over the repeats", "mean", "95 % interval")
    for name, interval in repeats.items():
        reach = f"{_number(interval['low'])} - {_number(interval['high'])}"
        table.add_row(name, _number(interval["value"]), reach)
    console.print(table)


def _print_sweep(console: Console, report: Mapping[str, Any]) -> None:
    table = Table("offered/s", "completed/s", "TTFT p95 ms", "E2E p95 ms", "goodput/s", "sustained")
    for step in sorted(report["steps"], key=lambda step: float(step["rate"])):
        summary = step["summary"]
        table.add_row(
            _number(step["rate"]),
            _number(step["completed_per_s"]),
            _number(summary["ttft_ms"]["p95"]),
            _number(summary["e2e_ms"]["p95"]),
            _number(summary["goodput_per_s"]),
            "yes" if step["sustained"] else "no",
        )
    console.print(table)
    rate, most = report["saturation_requests_per_s"], report["completed_per_s_max"]
    console.print(f"sustained: {_number(rate)} requests/s; at most {_number(most)}/s completed")


def _print_profile(console: Console, report: Mapping[str, Any]) -> None:
    table = Table("profile", "")
    for name, value in report["profile"].items():
        table.add_row(name, str(value))
    for name in ("ttft_residual", "decode_residual"):
        table.add_row(f"{name} (RMS)", f"{report[name]:.1%}")
    console.print(table)
