"""`bul config`: what is in force, and who said so. Never shows a secret's value."""

from __future__ import annotations

import click
import msgspec

from bul.cli.options import load
from bul.config import Settings, is_secret

__all__ = ["command"]


@click.group()
def command() -> None:
    """Settings: defaults, then bul.toml, then BUL_* variables, then flags."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def show(*, as_json: bool) -> None:
    """Print every effective value and where it came from.

    Example: BUL_SERVE_PORT=9002 bul config show
    """
    settings = load({})
    rows = [
        {"key": key, "value": _shown(key, value), "origin": settings.origin(key)}
        for key, value in settings.values().items()
    ]
    if as_json:
        file = str(settings.file) if settings.file else None
        click.echo(msgspec.json.encode({"file": file, "rows": rows}))
    else:
        _print_table(settings, rows)


def _shown(key: str, value: object) -> object:
    return "***" if is_secret(key) and value else value


def _print_table(settings: Settings, rows: list[dict[str, object]]) -> None:
    click.echo(f"file: {settings.file or 'none (bul.toml here would be read)'}\n")
    width = max(len(str(row["key"])) for row in rows)
    for row in rows:
        value = msgspec.json.encode(row["value"]).decode()
        click.echo(f"{row['key']:<{width}}  {value:<24}  {row['origin']}")
