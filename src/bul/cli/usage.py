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

    from bul.accounts.costs import DayCost
    from bul.accounts.store import UsageRow
    from bul.config import Settings

__all__ = ["command"]

DAY_S = 86_400.0


@click.command(name="usage")
@click.option("--days", type=click.FloatRange(min=0.0), help="Only the last so many. [all]")
@click.option("--key", "name", default="", help="Only this key's.")
@click.option("--costs", is_flag=True, help="By day and region: replica-hours, cost, tokens.")
@setting("scale.price_per_replica_hour", "--price-per-replica-hour", help="For --costs.")
@setting("accounts.database_url", "--database-url", help="sqlite:////FILE or postgresql://...")
@setting("up.state_dir", "--state-dir", help="Whose accounts.db, if no URL is given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(*, days: float | None, name: str, costs: bool, as_json: bool, **values: object) -> None:
    """Requests and tokens by key and model: in, of them from the cache, out.

    Counted when a request ends, written within a second or two; hours are the finest grain. The
    nameless key is everybody's while there are no keys.

    With --costs: what each region's replicas cost on each UTC day, from their start to the end of
    their drain, beside the tokens that all keys used there, and the prompt tokens that the cache
    saved from being computed.

    Example: bul usage --days 30 --key alice
    """
    from bul.cli.accounts import open_accounts
    from bul.errors import ConfigError

    settings = load_settings(values)
    since_s = 0.0 if days is None else time.time() - days * DAY_S
    if costs:
        if name:
            raise ConfigError("--costs are a region's: --key does not go with it")
        _costs(settings, since_s, as_json=as_json)
        return
    from bul.accounts.store import read_usage

    rows = read_usage(open_accounts(settings), since_s=since_s, name=name)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"rows": [dataclasses.asdict(r) for r in rows]}).decode())
        return
    _print(rows)


def _costs(settings: Settings, since_s: float, *, as_json: bool) -> None:
    from bul.accounts.costs import costs_by_day
    from bul.accounts.records import read_replica_hours
    from bul.accounts.store import read_usage_days
    from bul.cli.accounts import open_accounts

    engine = open_accounts(settings)
    price = settings.scale.price_per_replica_hour or None
    found = costs_by_day(
        read_replica_hours(engine, since_s=since_s),
        read_usage_days(engine, since_s=since_s),
        price,
    )
    if as_json:
        import msgspec

        rows = [dataclasses.asdict(row) | {"day": _day(row.day_s)} for row in found]
        document = {"price_per_replica_hour": price, "days": rows}
        click.echo(msgspec.json.encode(document).decode())
        return
    _print_costs(found)
    if price is None and found:
        click.echo("no price is set: --price-per-replica-hour, or [scale] in bul.toml", err=True)


def _day(day_s: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(day_s))


def _print_costs(rows: Sequence[DayCost]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not rows:
        click.echo("no region has run yet")
        return
    table = Table(
        "day (UTC)", box=None, caption="tokens in millions (M); computed, cached: of prompts"
    )
    table.columns[0].no_wrap = True
    for name in ("region", "hours", "cost", "tokens", "per M", "computed", "cached", "share"):
        table.add_column(name, justify="left" if name == "region" else "right")
    for row in rows:
        share = row.cached_tokens / row.prompt_tokens if row.prompt_tokens else 0.0
        table.add_row(
            _day(row.day_s),
            row.region,
            f"{row.replica_hours:,.2f}",
            _money(row.cost),
            _millions(row.prompt_tokens + row.output_tokens),
            _money(row.cost_per_million_tokens),
            _millions(row.computed_tokens),
            _millions(row.cached_tokens),
            f"{share:.0%}",
        )
    Console().print(table)


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:,.3f}"


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


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
