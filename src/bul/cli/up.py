"""`bul up`: a region on this machine until Ctrl-C, having answered one real prompt itself."""

from __future__ import annotations

import typing

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting

if typing.TYPE_CHECKING:
    from bul.cli.ask import Answer
    from bul.cli.events import EventLog
    from bul.cli.region import Region
    from bul.config import Settings

__all__ = ["command", "region_settings"]

OPENING_REPLY_TOKENS = 16


class _Limits(typing.TypedDict):
    model: str
    max_tokens: int


def region_settings(command: typing.Callable[..., typing.Any]) -> typing.Callable[..., typing.Any]:
    """The flags that `bul up` and `bul demo` share."""
    flags = [
        setting("route.host", "--host", help="Of the router; replicas stay on loopback."),
        setting("route.port", "--port", help="Of the router; a free one if 8000 is taken."),
        setting("up.replicas", "--replicas", help="Replicas to start."),
        setting("up.driver", "--driver", help="What starts and stops replicas."),
        setting("serve.engine", "--engine", help="timed: no model, deterministic text."),
        setting("serve.model", "--model", help="A GGUF file; the built-in model if left out."),
        setting("serve.threads", "--threads", help="Per replica; 0 shares the cores out."),
        setting("serve.slots", "--slots", help="Sequences that a replica computes at a time."),
        setting(
            "up.state_dir", "--state-dir", help="The only folder written to; .bul if left out."
        ),
        setting(
            "cache.enable_persistence",
            "--persistence",
            help="Keep KV on disk, in one folder for all replicas; on if left out.",
        ),
        setting("cache.persistence_dir", "--persistence-dir", help="That folder; STATE/cache."),
        setting(
            "cache.disk_bytes_max",
            "--disk-bytes-max",
            help="Its size; the smaller of 4 GiB and 10 % of the free space if left out.",
        ),
        setting("up.shared", "--shared", help="Start a Valkey that replicas share KV through."),
        setting("up.shared_bytes_max", "--shared-bytes-max", help="Its memory; 1 GiB."),
        setting(
            "cache.shared_url",
            "--shared-url",
            help="Your Valkey or Redis: redis://, rediss://, unix://, redis+cluster://, ...",
        ),
    ]
    return _with_flags(command, flags)


def _scale_settings(command: typing.Callable[..., typing.Any]) -> typing.Callable[..., typing.Any]:
    flags = [
        setting("scale.min_replicas", "--min-replicas", help="--replicas if left out."),
        setting("scale.max_replicas", "--max-replicas", help="Scale by itself up to so many."),
        setting("scale.policy", "--policy", help="Who decides how many."),
        setting("scale.scenario", "--scenario", help="Limits and cooldowns for a kind of traffic."),
        setting(
            "scale.slo_ttft_ms", "--slo-ttft-ms", help="A first token later than this is slow."
        ),
        setting("scale.violation_max", "--violation-max", help="Share of slow requests to hold."),
        setting("scale.advise", "--advise", help="Say what it would do, and do nothing."),
        setting("scale.interval_s", "--scale-interval-s", help="Between two decisions."),
    ]
    return _with_flags(command, flags)


def _with_flags(
    command: typing.Callable[..., typing.Any],
    flags: list[typing.Callable[..., typing.Callable[..., typing.Any]]],
) -> typing.Callable[..., typing.Any]:
    for flag in reversed(flags):
        command = flag(command)
    return command


@click.command(name="up")
@click.option(
    "--regions",
    "regions__world",
    callback=lambda _context, _option, text: tuple(text.split(",")) if text else None,
    metavar="A,B",
    help="Several regions on this machine.  [regions.world, BUL_REGIONS_WORLD]",
)
@setting("regions.wan_rtt_ms", "--wan-rtt-ms", help="Between them, there and back.")
@region_settings
@_scale_settings
@setting("up.log_format", "--log-format", help="json: one document per line, for machines.")
def command(**values: object) -> None:
    """A region on this machine: router on port 8000, replicas behind it, supervised.

    Answers one real prompt twice and prints both times to the first token: computed, then with
    the KV cache. Ctrl-C lets running answers finish and leaves no process behind; KV stays on
    disk, so that the next start is warm from its first request.

    With --max-replicas the region scales itself; `bul scale history` says why.

    Example: bul up --replicas 1 --max-replicas 4 --engine timed
    """
    import asyncio

    import uvloop

    from bul.cli.accounts import kept_accounts, with_accounts
    from bul.cli.events import EventLog
    from bul.cli.shared_server import shared_cache
    from bul.cli.state_folder import state_folder
    from bul.cli.tracing import tracing

    settings = load_settings(values)
    events = EventLog(settings.up.log_format)
    with state_folder(settings.up.state_dir) as folder:
        ensure_model(settings, events)
        if settings.regions.world:
            from bul.cli.world import run_world

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
                loop.run(run_world(settings, events, folder))
            return
        settings = with_accounts(settings, folder)
        with (
            shared_cache(settings, folder, events) as settings,
            kept_accounts(settings, has_book=True) as accounts,
            tracing(settings, "router") as traces,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop,
        ):
            from bul.cli.region import Region

            def make_region() -> Region:
                return Region(settings, events, folder, accounts.ring, accounts.book, traces)

            loop.run(_up(make_region, settings, events))
    events.emit("stopped", "stopped; nothing is left running")


def ensure_model(settings: Settings, events: EventLog) -> None:
    """Fetch the model before the replicas all want it, with progress. Raises ModelUnavailable."""
    if settings.serve.engine != "embedded":
        return
    from bul.inference.model_file import resolve_model

    resolve_model(settings.serve.model, lambda line: events.emit("model", line))


async def _up(
    make_region: typing.Callable[[], Region], settings: Settings, events: EventLog
) -> None:
    from bul.cli.signals import StopSignals

    region = make_region()
    with StopSignals(on_second=region.kill) as stop:
        try:
            await region.start()
            if await stop.race(region.wait_ready()):
                events.emit("ready", _invitation(region, settings), url=region.url)
                await stop.race(_opening(region, settings, events))
                await stop.wait()
            events.emit("stopping", "stopping: running answers finish first, Ctrl-C again kills")
        finally:
            await region.close()


def _invitation(region: Region, settings: Settings) -> str:
    engine = f"{region.replicas_first} replicas, engine {settings.serve.engine}"
    url = region.url
    return f"ready on {url} ({engine}); try: curl {url}/v1/models"


async def _opening(region: Region, settings: Settings, events: EventLog) -> None:
    """Ask one replica the same long question twice: computed, then with the cache."""
    from bul.errors import BulError

    if settings.keys:
        events.emit("opening_skipped", "API keys are set: no opening prompt without one")
        return
    replica = (await region.driver.replicas())[0]
    events.emit("opening", f"asking {replica.name} one long question, twice (about 20 s)")
    try:
        cold, warm, kept = await _cold_and_warm(replica.url)
    except BulError as error:
        # The region goes on: a replica that died meanwhile is the supervisor's business.
        events.emit("opening_failed", f"the opening prompt failed: {error}")
        return
    text = (
        f"time to first token of {cold.prompt_tokens} prompt tokens: {cold.ttft_ms / 1000:.2f} s "
        f"computed, {warm.ttft_ms / 1000:.2f} s with {warm.cached_tokens} of them from the cache"
        f"{' that an earlier region left on disk' if kept else ''}"
    )
    events.emit(
        "opening_answered",
        text,
        ttft_cold_ms=round(cold.ttft_ms, 1),
        ttft_warm_ms=round(warm.ttft_ms, 1),
        prompt_tokens=cold.prompt_tokens,
        cached_tokens=warm.cached_tokens,
        cached_tokens_cold=cold.cached_tokens,
        kept=kept,
        engine=settings.serve.engine,
    )


async def _cold_and_warm(url: str) -> tuple[Answer, Answer, bool]:
    """Both answers of one replica, and whether the warm one's KV is from an earlier region.

    The first answer decides: nothing of it cached makes it the cold one. Otherwise it is the warm
    one, and the cold one is asked for with the cache off. Raises BulError.
    """
    import httpx

    from bul.cli.ask import ask, model_id
    from bul.cli.conversations import conversations, opening

    messages = opening(conversations()[0])
    async with httpx.AsyncClient(trust_env=False) as client:
        limits: _Limits = {"model": await model_id(client, url), "max_tokens": OPENING_REPLY_TOKENS}
        first = await ask(client, url, messages, **limits)
        kept = first.cached_tokens > 0
        second = await ask(client, url, messages, use_cache=not kept, **limits)
    return (second, first, True) if kept else (first, second, False)
