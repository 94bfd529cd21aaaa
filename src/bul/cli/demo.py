"""`bul demo`: real conversations with the cache on and off, side by side, then a report."""

from __future__ import annotations

import typing
from pathlib import Path

import click

from bul.cli.live import read_key
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
@click.option(
    "--cold-replica",
    is_flag=True,
    help="Play on one replica, ask another one that starts with nothing: KV comes from Valkey.",
)
@click.option(
    "--at",
    "urls",
    multiple=True,
    help="Twice, with --cold-replica: replicas that run elsewhere, the second one fresh.",
)
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --at: a file that holds an operator's API key.",
)
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    as_json: bool,
    conversations: int,
    restart: bool,
    cold_replica: bool,
    urls: tuple[str, ...],
    key_file: Path | None,
    **values: object,
) -> None:
    """Play three real conversations of three turns, each turn with the cache on and off.

    Takes 2 to 4 minutes on 2 cores. Exit code 1 if any text differs from the one without cache.

    With --restart the figures are those after the restart; "before_restart" has the others.
    With --cold-replica they are those of the second replica, "first_replica" has the others.

    Example: bul demo --json

    Example: bul demo --restart

    Example: bul demo --cold-replica
    """
    import asyncio
    import sys

    import uvloop

    from bul.cli.demo_report import print_table, to_json
    from bul.cli.events import EventLog

    settings = load_settings(values)
    _check(restart=restart, cold_replica=cold_replica, urls=urls)
    if restart:
        settings = _with_persistence(settings)
    if cold_replica and not urls:
        settings = _with_shared(settings)
    events = EventLog("text", sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        report = loop.run(
            _demo(
                settings,
                events,
                conversations,
                restart=restart,
                cold_replica=cold_replica,
                urls=urls,
                key=read_key(key_file),
            )
        )
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


def _check(*, restart: bool, cold_replica: bool, urls: tuple[str, ...]) -> None:
    if restart and cold_replica:
        raise click.UsageError("--restart and --cold-replica are two demonstrations")
    if urls and not (cold_replica and len(urls) == 2):
        raise click.UsageError("--at is given twice, with --cold-replica")


def _with_shared(settings: Settings) -> Settings:
    """A Valkey of its own, unless one is named."""
    import dataclasses

    if settings.cache.shared_url:
        return settings
    return dataclasses.replace(settings, up=dataclasses.replace(settings.up, shared=True))


async def _demo(
    settings: Settings,
    events: EventLog,
    count: int,
    *,
    restart: bool,
    cold_replica: bool,
    urls: tuple[str, ...],
    key: str,
) -> Report | None:
    """The report, or None when somebody asked to stop. Raises BulError."""
    import asyncio

    from bul.cli.region import Region
    from bul.cli.shared_server import shared_cache
    from bul.cli.signals import StopSignals
    from bul.cli.state_folder import state_folder
    from bul.cli.up import ensure_model
    from bul.errors import BulError, ConfigError

    if settings.keys and not urls:
        hint = "start it in a folder without one, or name another file with --config"
        raise ConfigError("bul demo asks without an API key, but [keys] demands one", hint=hint)
    reports: list[Report] = []
    regions: list[Region] = []

    async def run(settings: Settings, folder: Path) -> None:
        async with asyncio.timeout(DEADLINE_S):
            if cold_replica:
                from bul.cli.demo_cold_replica import cold_replica as ask_another

                asked = ask_another(settings, events, count, folder=folder, urls=urls, key=key)
                reports.append(await asked)
                return
            regions.append(Region(settings, events, folder))
            await regions[0].start()
            await regions[0].wait_ready()
            reports.append(await _play(regions[0], settings, count, restart=restart))

    def kill() -> None:
        for region in regions:
            region.kill()

    with state_folder(settings.up.state_dir) as folder:
        ensure_model(settings, events)
        with (
            shared_cache(settings, folder, events) as with_shared,
            StopSignals(on_second=kill) as stop,
        ):
            try:
                await stop.race(run(with_shared, folder))
            except TimeoutError:
                raise BulError(f"the demo took longer than {DEADLINE_S:.0f} s") from None
            finally:
                for region in regions:
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
