"""`bul scale history`: what the scaler of a region decided, and why; the region may be gone.

Refuses to read more than the log's own bound, and passes over lines that a crash cut short.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting

__all__ = ["history_command", "read_history"]

LINES_MAX = 1_000_000


@click.command("history")
@setting("up.state_dir", "--state-dir", help="Of the region; .bul if left out.")
@click.option("--all", "everything", is_flag=True, help="Also the ticks that changed nothing.")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="One document.")
def history_command(everything: bool, last: int, as_json: bool, **values: object) -> None:
    """The scaler's decisions, oldest first: from how many to how many, and why.

    Holds are left out unless something is wrong or --all is given. Exit code 1 if there are none.

    Example: bul scale history --last 20
    """
    import msgspec

    from bul.cli.scaler import HISTORY_FILE
    from bul.cli.state_folder import DEFAULT_FOLDER

    folder = Path(load_settings(values).up.state_dir or DEFAULT_FOLDER)
    found = [one for one in read_history(folder / HISTORY_FILE) if everything or _tells(one)]
    found = found[-last:]
    if as_json:
        click.echo(msgspec.json.encode({"decisions": found}).decode())
    else:
        for one in found:
            click.echo(_line(one))
    if not found:
        click.echo(f"no decisions in {folder.resolve()}", err=True)
        click.get_current_context().exit(1)


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The documents of both halves of the log, oldest first."""
    import msgspec

    for half in (path.with_name(path.name + ".1"), path):
        try:
            lines = half.read_bytes().splitlines()[-LINES_MAX:]
        except OSError:
            continue
        for line in lines:
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                continue


def _tells(one: dict[str, Any]) -> bool:
    return bool(one["direction"] != "hold" or one["finding"] or one["alert"])


def _line(one: dict[str, Any]) -> str:
    at = dt.datetime.fromtimestamp(one["time_s"]).astimezone().strftime("%m-%d %H:%M:%S")
    return f"{at}  {one['policy']}  {one.get('text', one['reason'])}"
