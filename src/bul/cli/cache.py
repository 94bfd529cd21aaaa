"""`bul cache`: look into the KV cache. Each subcommand lives in `cache_NAME.py` beside this file.

It refuses to hold logic: this is the list of subcommands.
"""

from __future__ import annotations

import click

from bul.cli.cache_bench import bench_command
from bul.cli.cache_check import check_command
from bul.cli.cache_explain import explain_command
from bul.cli.cache_replay import replay_command
from bul.cli.cache_stats import stats_command

__all__ = ["command"]


@click.group("cache")
def command() -> None:
    """Look into the KV cache."""


command.add_command(bench_command)
command.add_command(check_command)
command.add_command(explain_command)
command.add_command(replay_command)
command.add_command(stats_command)
