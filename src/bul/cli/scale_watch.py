"""`bul scale watch`: the decisions of a running region, as they are made."""

from __future__ import annotations

from typing import Any

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting

__all__ = ["watch_command"]


@click.command("watch")
@setting("up.state_dir", "--state-dir", help="Of the running region; .bul if left out.")
@click.option("--json", "as_json", is_flag=True, help="One document per decision.")
def watch_command(as_json: bool, **values: object) -> None:
    """Every decision with its reason, a line each, until Ctrl-C or the region's end.

    Example: bul scale watch
    """
    import msgspec

    from bul.cli.control import ask_region

    settings = load_settings(values)

    def show(text: str, **facts: Any) -> None:
        click.echo(msgspec.json.encode(facts["record"]).decode() if as_json else text)

    ask_region(settings.up.state_dir, "scale_watch", show)
