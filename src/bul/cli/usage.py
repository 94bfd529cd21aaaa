"""`bul usage`: what the holders of keys used, from the ledger."""

from __future__ import annotations

import dataclasses
import time
import typing

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting

if typing.TYPE_CHECKING:
    from collections.abc import Sequence

    from bul.accounts.store import UsageRow

__all__ = ["command"]

DAY_S = 86_400.0


@click.command(name="usage")
@click.option("--days", type=click.FloatRange(min=0.0), help="Only the last so many. [all]")
@click.option("--key", "name", default="", help="Only this key's.")
@setting("accounts.database_url", "--database-url", help="sqlite:////FILE or postgresql://...")
@setting("up.state_dir", "--state-dir", help="Whose accounts.db, if no URL is given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(*, days: float | None, name: str, as_json: bool, **values: object) -> None:
    """Requests and tokens by key and model: in, of them from the cache, out.

    Counted when a request ends, written within a second or two; hours are the finest grain. The
    nameless key is everybody's while there are no keys.

    Example: bul usage --days 30 --key alice
    """
    from bul.accounts.store import read_replica_seconds, read_usage
    from bul.cli.accounts import open_accounts

    engine = open_accounts(load_settings(values))
    since_s = 0.0 if days is None else time.time() - days * DAY_S
    rows = read_usage(engine, since_s=since_s, name=name)
    hours = {
        region: s / 3600 for region, s in read_replica_seconds(engine, since_s=since_s).items()
    }
    if as_json:
        import msgspec

        document = {"rows": [dataclasses.asdict(row) for row in rows], "replica_hours": hours}
        click.echo(msgspec.json.encode(document).decode())
        return
    _print(rows)
    for region, spent in hours.items():
        click.echo(f"region {region}: {spent:,.2f} replica-hours")


def _print(rows: Sequence[UsageRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not rows:
        click.echo("nothing was used yet")
        return
    table = Table("key", "model", "requests", "prompt", "from the cache", "output")
    for row in rows:
        share = row.cached_tokens / row.prompt_tokens if row.prompt_tokens else 0.0
        table.add_row(
            row.name or "(none)",
            row.model,
            f"{row.requests:,}",
            f"{row.prompt_tokens:,}",
            f"{row.cached_tokens:,} ({share:.0%})",
            f"{row.output_tokens:,}",
        )
    Console().print(table)
