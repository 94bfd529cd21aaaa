"""`bul cache replay`: what would a cache of that size and policy have saved on this trace?

It refuses a damaged trace by the line's number; figures over a part of a trace would mislead.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from bul.cache.replay_trace import Trace

__all__ = ["replay_command"]

POLICIES_DEFAULT = "lru,adaptive,belady,infinite"
CAPACITIES_DEFAULT = "0.01,0.05,0.1,0.25,0.5"


@click.command("replay")
@click.option(
    "--trace",
    "traces",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    multiple=True,
    required=True,
    help="A block trace: BUL's or Mooncake's JSON lines, plain or gzipped. May be repeated.",
)
@click.option(
    "--policy", "policies", default=POLICIES_DEFAULT, show_default=True, help="Names, or `all`."
)
@click.option(
    "--capacity",
    "capacities",
    default=CAPACITIES_DEFAULT,
    show_default=True,
    help="Blocks, or with a dot a share of the trace's unique full blocks.",
)
@click.option(
    "--block-tokens",
    type=click.IntRange(1, 1 << 20),
    default=512,
    show_default=True,
    help="Tokens of a block, for traces without a header line.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True, path_type=pathlib.Path),
    help="Write the curves as a self-contained HTML page.",
)
def replay_command(
    traces: tuple[pathlib.Path, ...],
    policies: str,
    capacities: str,
    block_tokens: int,
    seed: int,
    as_json: bool,
    plot: pathlib.Path | None,
) -> None:
    """Replay block traces through eviction policies: token hit ratio and saved prefill time.

    Example: bul cache replay --trace conversations.jsonl.gz --policy lru,adaptive --capacity 0.05

    Example: bul cache replay --trace a.jsonl --trace b.jsonl --policy all --json --plot curves.html
    """
    from bul.cache.replay import COST_MODEL
    from bul.cache.replay_trace import read_trace

    names = _names(policies)
    rows: list[dict[str, object]] = []
    for path in traces:
        trace = read_trace(path, block_tokens)
        rows.extend(_rows(trace, names, capacities.split(","), seed))
    if plot is not None:
        _write_plot(plot, rows)
    if as_json:
        _print_json({"cost_model": COST_MODEL, "seed": seed, "rows": rows})
    else:
        _print_table(rows)
        click.echo(f"saved prefill: {COST_MODEL}")


def _names(policies: str) -> list[str]:
    from bul.cache.replay import REPLAY_NAMES, check_name

    names = list(REPLAY_NAMES) if policies == "all" else [n.strip() for n in policies.split(",")]
    for name in names:  # before any work is done
        check_name(name)
    return names


def _rows(
    trace: Trace, names: Iterable[str], capacities: Iterable[str], seed: int
) -> list[dict[str, object]]:
    from rich.console import Console
    from rich.progress import Progress

    from bul.cache.replay import capacity_blocks

    unique, rows = trace.unique_blocks, []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for asked in map(str.strip, capacities):
            capacity = capacity_blocks(asked, unique)
            share = float(asked) if "." in asked else capacity / max(unique, 1)
            for name in names:
                label = f"{trace.name} {name} {capacity:,}"
                task = progress.add_task(label, total=len(trace.requests))
                row = _row(trace, name, capacity, seed, functools.partial(_advance, progress, task))
                rows.append({**row, "capacity_share": round(share, 6)})
                progress.remove_task(task)
    return rows


def _advance(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


def _row(
    trace: Trace, name: str, capacity: int, seed: int, advance: Callable[[int], None]
) -> dict[str, object]:
    from bul.cache.replay import make_replayed, replay
    from bul.clock import SystemClock

    clock = SystemClock()
    policy = make_replayed(name, capacity, trace, seed)
    started_s = clock.now_s()
    result = replay(trace, policy, progress=advance)
    seconds = clock.now_s() - started_s
    return {
        "trace": trace.name,
        "policy": name,
        "capacity_blocks": capacity,
        "block_tokens": trace.block_tokens,
        "token_hit_ratio": round(result.token_hit_ratio, 6),
        "saved_prefill_s": round(result.saved_prefill_s, 3),
        "prefill_s": round(result.prefill_s, 3),
        "requests": result.requests,
        "replay_requests_per_s": round(result.requests / max(seconds, 1e-9), 1),
        "seconds": round(seconds, 3),
    }


def _write_plot(path: pathlib.Path, rows: list[dict[str, object]]) -> None:
    from bul.cache.replay import COST_MODEL
    from bul.cache.replay_plot import render_plot

    try:
        path.write_text(render_plot(rows, COST_MODEL), encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), hint=error.strerror) from error


def _print_json(document: dict[str, object]) -> None:
    import msgspec

    click.echo(msgspec.json.encode(document).decode())


def _print_table(rows: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("trace", "policy", "blocks", "share", "token hit ratio", "saved s", "requests/s")
    for row in rows:
        table.add_row(
            str(row["trace"]),
            str(row["policy"]),
            f"{row['capacity_blocks']:,}",
            f"{row['capacity_share']:.2%}",
            f"{row['token_hit_ratio']:.4f}",
            f"{row['saved_prefill_s']:,.1f}",
            f"{row['replay_requests_per_s']:,.0f}",
        )
    Console().print(table)
