"""`bul scale`: compare scalers on a trace before one of them decides over a live region.

Refuses nothing itself; each subcommand has its file.
"""

from __future__ import annotations

import click

from bul.cli.scale_history import history_command
from bul.cli.scale_simulate import simulate_command
from bul.cli.scale_to import to_command
from bul.cli.scale_watch import watch_command

__all__ = ["command"]


@click.group("scale")
def command() -> None:
    """Resize a running region; what its scaler decided; simulate it on a trace."""


command.add_command(simulate_command)
command.add_command(to_command)
command.add_command(history_command)
command.add_command(watch_command)
