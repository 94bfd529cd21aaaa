"""`bul scale history`: what the scaler of a region decided, and why; the region may be gone.

Refuses to read more than the log's own bound, and passes over lines that a crash cut short. The
shared database has those of all regions, but only those that changed something or said something
new, and without the signals behind them.
"""

from __future__ import annotations

import datetime as dt
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting

if typing.TYPE_CHECKING:
    from bul.config import Settings

__all__ = ["history_command", "read_history"]

LINES_MAX = 1_000_000
ROWS_MAX = 10_000


@click.command("history")
@setting("up.state_dir", "--state-dir", help="Of the region; .bul if left out.")
@click.option("--database", is_flag=True, help="Of the shared database, not this host's log.")
@setting("accounts.database_url", "--database-url", help="sqlite:////FILE or postgresql://...")
@click.option("--region", default="", help="With --database: only this one's.")
@click.option("--all", "everything", is_flag=True, help="Also the ticks that changed nothing.")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="One document.")
def history_command(
    *, database: bool, region: str, everything: bool, last: int, as_json: bool, **values: object
) -> None:
    """The scaler's decisions, oldest first: from how many to how many, and why.

    Holds are left out unless something is wrong or --all is given. Exit code 1 if there are none.
    Without a log here, those of the accounts' database are shown.

    Example: bul scale history --last 20
    """
    import msgspec

    from bul.cli.scaler import HISTORY_FILE
    from bul.cli.state_folder import DEFAULT_FOLDER

    settings = load_settings(values)
    folder = Path(settings.up.state_dir or DEFAULT_FOLDER)
    log = folder / HISTORY_FILE
    if database or region or not log.exists():
        decisions = _of_database(settings, region)
        where = "the accounts' database"
    else:
        decisions, where = list(read_history(log)), str(folder.resolve())
    found = [one for one in decisions if everything or _tells(one)][-last:]
    if as_json:
        click.echo(msgspec.json.encode({"decisions": found}).decode())
    else:
        for one in found:
            click.echo(_line(one))
    if not found:
        click.echo(f"no decisions in {where}", err=True)
        click.get_current_context().exit(1)


def _of_database(settings: Settings, region: str) -> list[dict[str, Any]]:
    """Oldest first, as in the log, with the region's name."""
    from bul.accounts.records import read_decisions
    from bul.cli.accounts import open_if_there
    from bul.scaling.decision import Decision, Direction
    from bul.scaling.history import Record

    engine = open_if_there(settings)
    if engine is None:
        return []
    found = []
    for name, row in reversed(read_decisions(engine, limit=ROWS_MAX, region=region)):
        decision = Decision(
            direction=Direction(row.direction),
            replicas=row.replicas,
            reason=row.reason,
            alert=row.alert,
        )
        record = Record(
            wall_s=row.at_s,
            policy=row.policy,
            decision=decision,
            replicas_before=row.replicas_before,
            acted=row.acted,
            advisory=row.advisory,
            finding=row.finding,
        )
        found.append(record.document() | {"region": name})
    return found


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
    where = f"{one['region']}  " if "region" in one else ""
    return f"{at}  {where}{one['policy']}  {one.get('text', one['reason'])}"
