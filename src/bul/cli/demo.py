"""`bul demo`: real conversations with the cache on and off, side by side, then a report."""

from __future__ import annotations

import typing

import click

from bul.cli.options import load as load_settings
from bul.cli.up import region_settings

if typing.TYPE_CHECKING:
    from bul.cli.demo_report import Report
    from bul.cli.events import EventLog
    from bul.cli.region import Region
    from bul.config import Settings

__all__ = ["command"]

DEADLINE_S = 600.0


@click.command(name="demo")
@region_settings
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--conversations",
    type=click.IntRange(1, 3),
    default=3,
    show_default=True,
    help="How many of the three to play.",
)
@click.option(
    "--restart",
    is_flag=True,
    help="Then kill -9 every replica and ask again: KV comes from disk.",
)
@click.pass_context
def command(
    context: click.Context, /, *, as_json: bool, conversations: int, restart: bool, **values: object
) -> None:
    """Play three real conversations of three turns, each turn with the cache on and off.

    Takes 2 to 4 minutes on 2 cores. Exit code 1 if any text differs from the one without cache.

    With --restart the figures are those after the restart; "before_restart" has the others.

    Example: bul demo --json

    Example: bul demo --restart
    """
    import asyncio
    import sys

    import uvloop

    from bul.cli.demo_report import print_table, to_json
    from bul.cli.events import EventLog

    settings = load_settings(values)
    if restart:
        settings = _with_persistence(settings)
    events = EventLog("text", sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        report = loop.run(_demo(settings, events, conversations, restart=restart))
    if report is None:
        raise click.exceptions.Abort
    if as_json:
        click.echo(to_json(report))
    else:
        print_table(report)
    context.exit(0 if report.identical else 1)


def _with_persistence(settings: Settings) -> Settings:
    """Asked for now: without a disk tier there is nothing to show. Raises ConfigError."""
    import dataclasses

    from bul.errors import ConfigError

    key = "cache.enable_persistence"
    if settings.origin(key) != "default" and not settings.cache.enable_persistence:
        message = f"--restart shows KV on disk, and {key} is off, from {settings.origin(key)}"
        raise ConfigError(message, hint="give --persistence, or leave --no-persistence out")
    cache = dataclasses.replace(settings.cache, enable_persistence=True)
    origins = {**settings.origins, key: "--restart"}
    return dataclasses.replace(settings, cache=cache, origins=origins)


async def _demo(
    settings: Settings, events: EventLog, count: int, *, restart: bool
) -> Report | None:
    """The report, or None when somebody asked to stop. Raises BulError."""
    import asyncio

    from bul.cli.region import Region
    from bul.cli.signals import StopSignals
    from bul.cli.state_folder import state_folder
    from bul.cli.up import ensure_model
    from bul.errors import BulError, ConfigError

    if settings.keys:
        hint = "start it in a folder without one, or name another file with --config"
        raise ConfigError("bul demo asks without an API key, but [keys] demands one", hint=hint)
    reports: list[Report] = []

    async def run(region: Region) -> None:
        await region.start()
        await region.wait_ready()
        async with asyncio.timeout(DEADLINE_S):
            reports.append(await _play(region, settings, count, restart=restart))

    with state_folder(settings.up.state_dir) as folder:
        ensure_model(settings, events)
        region = Region(settings, events, folder)
        with StopSignals(on_second=region.kill) as stop:
            try:
                await stop.race(run(region))
            except TimeoutError:
                raise BulError(f"the demo took longer than {DEADLINE_S:.0f} s") from None
            finally:
                await region.close()
    return reports[0] if reports else None


async def _play(region: Region, settings: Settings, count: int, *, restart: bool) -> Report:
    import time

    from bul.cli.demo_play import play
    from bul.cli.demo_report import Report
    from bul.cli.demo_restart import restart as kill_and_ask_again

    start_s = time.monotonic()
    played = await play([replica.url for replica in await region.driver.replicas()], count)
    facts, turns = None, played.turns
    if restart:
        facts, again = await kill_and_ask_again(region, played)
        turns += again
    return Report(
        engine=settings.serve.engine,
        model=played.model,
        conversations=len(played.last),
        turns=turns,
        seconds=time.monotonic() - start_s,
        restart=facts,
    )
