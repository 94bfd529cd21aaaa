"""`bul scale`: compare scalers on a trace before one of them decides over a live region.

Refuses nothing itself; each subcommand has its file.
"""

from __future__ import annotations

import click

from bul.cli.scale_simulate import simulate_command

__all__ = ["command"]


@click.group("scale")
def command() -> None:
    """The autoscaler: simulate it on a trace."""


command.add_command(simulate_command)
