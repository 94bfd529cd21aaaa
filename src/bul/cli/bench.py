"""`bul bench`: loads an OpenAI-compatible endpoint; wiring in `bench_run.py`, words in
`bench_show.py`.

Refuses a key on the command line, where `ps` shows it, and any target but this machine unless
told that the load is welcome there.
"""

from __future__ import annotations

import pathlib
import typing

import click

__all__ = ["command"]

API_KEY_VARIABLE = "BUL_BENCH_API_KEY"
_FILE_IN = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
_FILE_OUT = click.Path(dir_okay=False, writable=True, path_type=pathlib.Path)
Command = typing.Callable[..., typing.Any]


def _options(*options: typing.Callable[[Command], Command]) -> typing.Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_load = _options(
    click.option("--concurrency", type=int, help="Closed loop: so many users.  [default: 8]"),
    click.option("--rate", type=float, help="Open loop: requests a second; the sweep's start."),
    click.option("--cv", type=float, default=1.0, show_default=True,
                 help="Burstiness of an open loop: 0 a metronome, 1 Poisson, above 1 Gamma."),
    click.option("--sweep", is_flag=True, help="Raise the rate until it is not sustained."),
    click.option("--step-s", type=float, default=10.0, show_default=True,
                 help="Length of a sweep's step."),
    click.option("--requests", type=int, help="At most so many.  [default: 200; a trace: all]"),
    click.option("--duration", "duration_s", type=float, help="At most so many seconds."),
    click.option("--warmup", type=int, default=0, show_default=True,
                 help="First requests that no figure counts."),
    click.option("--repeats", type=click.IntRange(1, 100), default=1, show_default=True),
    click.option("--timeout-s", type=click.FloatRange(0.01, 3600), default=60.0,
                 show_default=True),
    click.option("--seed", type=int, default=0, show_default=True),
)  # fmt: skip
_work = _options(
    click.option("--trace", type=_FILE_IN, help="Block trace (JSON lines) or Azure CSV."),
    click.option("--time-scale", type=float, default=1.0, show_default=True,
                 help="0.5 plays a trace twice as fast."),
    click.option("--length-scale", type=float, default=1.0, show_default=True,
                 help="0.1 makes a trace's prompts and replies a tenth as long."),
    click.option("--prompt-tokens", type=float, default=256, show_default=True),
    click.option("--prompt-cv", type=float, default=0.0, show_default=True,
                 help="Spread of the lengths; 0: all equal."),
    click.option("--output-tokens", type=float, default=32, show_default=True),
    click.option("--output-cv", type=float, default=0.0, show_default=True),
    click.option("--length-shape", type=click.Choice(["lognormal", "uniform"]),
                 default="lognormal", show_default=True),
    click.option("--shared-share", type=float, default=0.0, show_default=True,
                 help="Share of the conversations that begin with a shared prefix."),
    click.option("--shared-tokens", type=int, default=512, show_default=True),
    click.option("--prefixes", type=int, default=1, show_default=True,
                 help="Different shared prefixes."),
    click.option("--turns", type=int, default=1, show_default=True,
                 help="Turns of a conversation; each repeats what was said before."),
    click.option("--think-s", type=float, default=0.0, show_default=True),
)  # fmt: skip
_target = _options(
    click.option("--model", help="[default: the first that /v1/models names]"),
    click.option("--api-key-file", type=_FILE_IN, help=f"Else ${API_KEY_VARIABLE}."),
    click.option("--allow-remote", is_flag=True, help="Load another machine than this one."),
    click.option("--slo-ttft-ms", type=float, help="A good request's first token is so early."),
    click.option("--slo-e2e-ms", type=float, help="A good request is done so early."),
)
_output = _options(
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("--csv", "csv_file", type=_FILE_OUT, help="A line per request."),
    click.option("--html", "html_file", type=_FILE_OUT, help="One page with plots."),
    click.option("--profile-out", type=_FILE_OUT,
                 help="Fit the simulator's replica profile instead; needs an idle endpoint."),
    click.option("--slots", type=click.IntRange(1, 4096), help="Of the profile.  [default: found]"),
    click.option("--chunk-tokens", type=click.IntRange(1), default=64, show_default=True,
                 help="Of the profile: prefill tokens between two decode calls; not measured."),
    click.option("--cache-tokens", type=click.IntRange(0), default=262_144, show_default=True,
                 help="Of the profile: KV that the replica keeps; not measured."),
)  # fmt: skip


@click.command(name="bench")
@click.argument("url", default="http://127.0.0.1:8000")
@_load
@_work
@_target
@_output
@click.pass_context
def command(context: click.Context, /, url: str, **values: typing.Any) -> None:
    """Load the endpoint at URL and report TTFT, time between tokens, E2E, goodput and errors.

    Example: bul bench --concurrency 8 --requests 200

    Example: bul bench --rate 20 --duration 60 --slo-ttft-ms 500 --html report.html

    Example: bul bench --sweep --slo-ttft-ms 500 --json

    Example: bul bench --trace moon_conv.jsonl.gz --time-scale 0.1 --length-scale 0.05

    Example: bul bench --turns 4 --shared-share 0.8 --repeats 5

    Example: bul bench http://127.0.0.1:8002 --profile-out replica.json

    Exit code 1 if no request succeeded. Ctrl-C ends the load and reports what ran.
    """
    import asyncio

    import uvloop

    from bul.cli.bench_run import bench
    from bul.cli.bench_show import Screen, show

    values["api_key"] = _api_key(values["api_key_file"])
    screen = Screen()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, screen:
        report = runner.run(bench(url, values, screen))
    show(report, as_json=values["as_json"])
    context.exit(0 if report["succeeded"] else 1)


def _api_key(path: pathlib.Path | None) -> str:
    from bul.config import environment

    if path is None:
        return environment().get(API_KEY_VARIABLE, "").strip()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.FileError(str(path), hint=str(error)) from error
