"""The `bul` command: finds the one command that was asked for, and turns errors into one line.

Refuses to import what the asked command does not need: `bul --help` reads this table alone.
Each command lives in `cli/NAME.py`, which defines `command`.

Exit codes: 0 done, 1 the answer is no (or it failed), 2 bad usage or a bad setting, 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

import click

from bul.errors import BulError, ConfigError

__all__ = ["COMMANDS", "main", "root"]

COMMANDS = {
    "up": "A region on this machine: a router and its replicas, supervised.",
    "demo": "Play real conversations with the cache on and off, report, exit.",
    "serve": "One replica: an OpenAI-compatible service.",
    "route": "The router alone, in front of replicas.",
    "nginx": "The configuration of an nginx in front of routers or replicas.",
    "restart": "Every replica of a running region anew, without a lost request.",
    "bench": "Load an OpenAI-compatible endpoint and say what its users felt.",
    "cache": "Look into the KV cache: stats, check, replay, bench, explain.",
    "plan": "Replicas, cost and files to deploy, from a load and a target.",
    "check": "The checklist: is this region ready to scale, and did it work?",
    "scale": "The autoscaler: history, watch, to N; simulate it on a trace.",
    "regions": "Other regions: this one's agent, status, sync, purge.",
    "keys": "API keys: create, list, revoke; only their hashes are kept.",
    "usage": "What each key used: requests and tokens, of them from the cache.",
    "model": "Fetch the built-in model.",
    "config": "Show the effective settings and where each came from.",
}
"""Name -> one line for `bul --help`, in the order of a newcomer's interest."""

INTERRUPTED = 130


class _LazyGroup(click.Group):
    """Imports `bul.cli.NAME` when NAME is called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"bul.cli.{cmd_name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"bul {importlib.metadata.version('bul')}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False),
    help="The settings file. [default: $BUL_CONFIG, else bul.toml here if there is one]",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version)
@click.pass_context
def root(ctx: click.Context, config_path: str | None) -> None:
    """Grow an LLM service from a laptop to several regions without changing software.

    Start here:  bul up      then     curl localhost:8000/v1/models
    """
    ctx.obj = config_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Does not raise for what a user can cause."""
    try:
        outcome = root.main(args=arguments, prog_name="bul", standalone_mode=False)
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BulError as error:
        sys.stderr.write(f"bul: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return outcome if isinstance(outcome, int) else 0
