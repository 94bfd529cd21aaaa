"""`bul scale to N`: start or drain replicas of a running region until there are N."""

from __future__ import annotations

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting

__all__ = ["to_command"]


@click.command("to")
@click.argument("replicas", type=click.IntRange(min=1))
@setting("up.state_dir", "--state-dir", help="Of the running region; .bul if left out.")
@click.option("--json", "as_json", is_flag=True, help="One document; progress on stderr.")
def to_command(replicas: int, as_json: bool, **values: object) -> None:
    """Start replicas, or drain some, until REPLICAS of them serve; then return.

    One that leaves gets no new request and finishes its answers, streams included.

    Example: bul scale to 3
    """
    import msgspec

    from bul.cli.control import ask_region

    settings = load_settings(values)

    def progress(text: str, **_: object) -> None:
        click.echo(text, err=as_json)

    result = ask_region(settings.up.state_dir, "scale", progress, replicas=replicas)
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        click.echo(f"{result['replicas']} replicas serve")
