"""`bul regions`: the agent that speaks with other regions, and what one may ask of it.

Refuses to guess where an agent is: it is the one of [regions], or one of those that
`bul up --regions` wrote into the state folder.
"""

from __future__ import annotations

import asyncio
import typing
from pathlib import Path

import click
import msgspec

from bul.cli.options import load as load_settings
from bul.cli.options import setting

if typing.TYPE_CHECKING:
    from collections.abc import Callable

    from bul.config import Settings

__all__ = ["WORLD_FILE", "AgentAddress", "ask_agent", "command"]

WORLD_FILE = "world.json"
ASK_S = 60.0


class AgentAddress(msgspec.Struct):
    """Where a region's agent is, and the secret to ask it with."""

    region: str
    url: str
    secret: str
    router_url: str = ""


@click.group("regions")
def command() -> None:
    """Other regions: run this one's agent; its status, a comparison now, a purge everywhere."""


@command.command("serve")
@setting("regions.name", "--name", help="Of this region.")
@setting("regions.peers", "--peer", help="NAME=URL of another region's agent; may be repeated.")
@setting("regions.host", "--host")
@setting("regions.port", "--port", help="0 asks the system for a free one.")
@setting("up.state_dir", "--state-dir", help="Of the region; its cache folder lies there.")
@setting("up.log_format", "--log-format")
def serve_command(**values: object) -> None:
    """The agent of one region: answers the others, tells them news, compares with them.

    One for each region, beside its router. The secret comes from [regions] peer_secret or from
    BUL_REGIONS_PEER_SECRET, never from a flag.

    Example: bul regions serve --name us-east --peer eu-west=https://eu-west.example:8010
    """
    import uvloop

    from bul.cli.state_folder import DEFAULT_FOLDER
    from bul.regions.agent import check_config

    settings = load_settings(values)
    check_config(settings.regions)
    folder = Path(settings.up.state_dir or DEFAULT_FOLDER).resolve()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, folder))


async def _serve(settings: Settings, folder: Path) -> None:
    from bul.cli.events import EventLog
    from bul.cli.region_store import store_opener
    from bul.cli.signals import StopSignals
    from bul.regions.agent import RegionAgent
    from bul.regions.journal import JOURNAL_FILE, SqliteJournal
    from bul.regions.store import TierStore

    events = EventLog(settings.up.log_format)
    store = TierStore(store_opener(settings, folder))
    journal = SqliteJournal(folder / JOURNAL_FILE)
    agent = RegionAgent(settings.regions, store, journal)
    try:
        with StopSignals(on_second=lambda: None) as stop:
            await agent.start()
            names = ", ".join(settings.regions.peer_urls) or "nobody"
            text = f"region {settings.regions.name} on {agent.url}, with {names}"
            events.emit("ready", text, url=agent.url, region=settings.regions.name)
            await stop.wait()
    finally:
        await agent.stop()
        store.close()
        journal.close()
    events.emit("stopped", "stopped")


def _agent_options(function: Callable[..., typing.Any]) -> Callable[..., typing.Any]:
    for option in (
        click.option("--region", default="", help="One of `bul up --regions`; all if left out."),
        setting("up.state_dir", "--state-dir", help="Of `bul up --regions`; .bul if left out."),
        click.option("--json", "as_json", is_flag=True, help="One document on stdout."),
    ):
        function = option(function)
    return function


@command.command("status")
@_agent_options
def status_command(region: str, as_json: bool, **values: object) -> int:
    """Distance, lag and backlog of every pair; 1 if a region is out of reach.

    Example: bul regions status --json
    """
    found = {one.region: _told(one, "status") for one in _agents(load_settings(values), region)}
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        for name, status in found.items():
            _show(name, status)
    reached = [peer["reachable"] for status in found.values() for peer in status["peers"].values()]
    return 0 if all(reached) else 1


@command.command("sync")
@_agent_options
def sync_command(region: str, as_json: bool, **values: object) -> int:
    """Tell all news and compare with every other region now; 1 if one does not answer.

    Example: bul regions sync
    """
    found = {one.region: _told(one, "sync") for one in _agents(load_settings(values), region)}
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        for name, others in found.items():
            for other, differed in others.items():
                said = "does not answer" if differed < 0 else f"{differed} records differed"
                click.echo(f"{name} - {other}: {said}")
    return 1 if any(n < 0 for others in found.values() for n in others.values()) else 0


@command.command("purge")
@click.option("--tenant", default="", help="Everything of this tenant.")
@click.option("--model", default="", help="Everything of this identity, 64 hex digits.")
@_agent_options
def purge_command(tenant: str, model: str, region: str, as_json: bool, **values: object) -> None:
    """Purge a tenant or retire a model, in all regions, for good.

    Tells one region, which tells the others; those that are cut off do it when they are back.

    Example: bul regions purge --tenant acme
    """
    from bul.errors import ConfigError
    from bul.regions import messages as m
    from bul.regions.versions import tenant_tag

    if bool(tenant) is bool(model):
        raise ConfigError("name what to purge", hint="--tenant NAME or --model IDENTITY")
    try:
        target = tenant_tag(tenant) if tenant else bytes.fromhex(model)
        stone = m.Stone("tenant" if tenant else "model", target, 0)
    except ValueError:
        raise ConfigError(f"an identity has 64 hex digits, was {model!r}") from None
    agent = _agents(load_settings(values), region)[0]
    ask_agent(agent, "erase", m.pack(m.Offer([], [stone])))
    done = {"region": agent.region, "tenant": tenant, "model": model}
    said = f"purged in {agent.region}; the other regions are told"
    click.echo(msgspec.json.encode(done).decode() if as_json else said)


def ask_agent(agent: AgentAddress, path: str, body: bytes) -> bytes:
    """The answer of a region's own agent. Raises DriverError."""
    return asyncio.run(_ask(agent, path, body))


async def _ask(agent: AgentAddress, path: str, body: bytes) -> bytes:
    from bul.clock import SystemClock
    from bul.errors import DriverError
    from bul.regions.auth import Seal
    from bul.regions.node import PeerFailed
    from bul.regions.peer import PeerClient

    seal = Seal(agent.secret, agent.region)
    client = PeerClient(seal, agent.region, agent.url, SystemClock(), base="/local/")
    try:
        return await client.ask(path, body, ASK_S)
    except PeerFailed as error:
        hint = "is it running? bul up --regions, or bul regions serve"
        raise DriverError(str(error), hint=hint) from error
    finally:
        await client.close()


def _told(agent: AgentAddress, path: str) -> dict[str, typing.Any]:
    return msgspec.json.decode(ask_agent(agent, path, b""), type=dict[str, typing.Any])


def _agents(settings: Settings, region: str) -> list[AgentAddress]:
    """Of the world in the state folder, else the one of [regions]. Raises ConfigError."""
    from bul.cli.region_store import agent_url
    from bul.cli.state_folder import DEFAULT_FOLDER
    from bul.errors import ConfigError
    from bul.regions.agent import check_config

    file = Path(settings.up.state_dir or DEFAULT_FOLDER) / WORLD_FILE
    if file.exists() and not settings.regions.name:
        agents = msgspec.json.decode(file.read_bytes(), type=list[AgentAddress])
    else:
        check_config(settings.regions)
        name, secret = settings.regions.name, settings.regions.peer_secret
        agents = [AgentAddress(name, agent_url(settings), secret)]
    chosen = [one for one in agents if region in ("", one.region)]
    if not chosen:
        names = ", ".join(one.region for one in agents)
        raise ConfigError(f"no region {region!r} here", hint=f"one of {names}")
    return chosen


def _show(name: str, status: dict[str, typing.Any]) -> None:
    click.echo(f"{name}: {status['present']} blocks and values, {status['graves']} graves")
    for other, peer in status["peers"].items():
        if not peer["reachable"]:
            click.echo(f"  {other}: out of reach, {peer['backlog_keys']} news wait")
            continue
        click.echo(
            f"  {other}: {peer['rtt_ms']:.0f} ms, lag {peer['lag_p50_ms']:.0f} ms "
            f"(p99 {peer['lag_p99_ms']:.0f}), {peer['backlog_keys']} news wait, "
            f"{peer['pushed_blocks_total']} blocks told, {peer['pulled_blocks_total']} pulled"
        )
