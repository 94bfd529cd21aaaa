"""`bul serve`: one replica; the wiring of engine, cache, runner and service."""

from __future__ import annotations

import asyncio
import typing

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting

if typing.TYPE_CHECKING:
    from bul.cache.engine import UltraAdaptiveKVCacheEngine
    from bul.cli.accounts import Accounts
    from bul.cli.events import EventLog
    from bul.cli.tracing import Tracing
    from bul.config import KVCacheConfig, Settings
    from bul.inference.contract import ModelCore, Runner

__all__ = ["command", "make_core"]


@click.command(name="serve")
@setting("serve.host", "--host", help="Beyond loopback, [keys] must hold an API key.")
@setting("serve.port", "--port", help="0 asks the system for a free one.")
@setting("serve.engine", "--engine", help="timed: no model, deterministic text at set rates.")
@setting("serve.model", "--model", help="A GGUF file; the built-in model if left out.")
@setting("serve.slots", "--slots", help="Sequences computed at the same time.")
@setting("serve.context_tokens", "--context-tokens", help="Prompt plus answer, at most.")
@setting("serve.threads", "--threads", help="0 for all cores.")
@setting("serve.waiting_max", "--waiting-max", help="Requests that may wait; more get 429.")
@setting("serve.request_deadline_s", "--request-deadline-s")
@setting("serve.join", "--join", help="A router's URL to register with; may be repeated.")
@setting("serve.advertise", "--advertise", help="The URL that routers are told.")
@setting("serve.drain_s", "--drain-s", help="For running answers after SIGTERM.")
@setting("serve.share_between_tenants", "--share-between-tenants")
@setting("cache.max_tokens", "--max-tokens", help="KV kept in RAM, in tokens.")
@setting("cache.ram_bytes_max", "--ram-bytes-max")
@setting("cache.eviction", "--eviction")
@setting("cache.enable_persistence", "--enable-persistence", help="Keep KV on disk as well.")
@setting("cache.persistence_dir", "--persistence-dir", help="Shared by a host's replicas.")
@setting("cache.disk_bytes_max", "--disk-bytes-max", help="Of the folder, all replicas together.")
@setting("cache.fsync", "--fsync", help="none, interval or always.")
@setting("cache.cache_generated", "--cache-generated")
@setting("cache.shared_url", "--shared-url", help="A Valkey or Redis that hosts share KV through.")
@setting("timed.prefill_tokens_per_s", "--prefill-tokens-per-s")
@setting("timed.decode_tokens_per_s", "--decode-tokens-per-s")
@setting("timed.block_bytes", "--block-bytes")
@setting("timed.time_scale", "--time-scale", help="0 does not wait at all.")
@setting("up.log_format", "--log-format")
def command(**values: object) -> None:
    """One replica: an OpenAI-compatible service on port 8002.

    Prints one line when it is ready. SIGTERM lets running answers finish.

    Example: bul serve --engine timed --port 0
    """
    _serve(load_settings(values))


def _serve(settings: Settings) -> None:
    from bul.cli.accounts import kept_accounts
    from bul.cli.tracing import tracing
    from bul.config import environment
    from bul.scaling.drivers.allocator import use_one_heap

    use_one_heap(environment())  # before there are threads
    with kept_accounts(settings) as accounts, tracing(settings, "replica") as traces:
        _serve_with(settings, accounts, traces)


def _serve_with(settings: Settings, accounts: Accounts, traces: Tracing) -> None:
    from bul.blocks.text_chain import text_secret
    from bul.cli.cache_engine import open_cache_engine
    from bul.cli.events import EventLog
    from bul.cli.shared_server import say_whether_it_answers
    from bul.clock import SystemClock
    from bul.inference.runner import BatchingRunner
    from bul.service.app import ReplicaApp
    from bul.service.cache_events import BlockEvents
    from bul.service.join import Joiner, make_epoch
    from bul.service.server import bind, run

    config = settings.serve
    events = EventLog(settings.up.log_format)
    bound = bind(config, accounts.ring)
    engines: list[UltraAdaptiveKVCacheEngine] = []
    told = BlockEvents(secret=text_secret(config.cache_secret))
    clock = SystemClock()
    joiner = Joiner(
        config.join,
        epoch=make_epoch(clock),
        secret=config.join_secret,
        advertise=config.advertise,
    )
    app = ReplicaApp(
        config,
        keys=accounts.ring,
        resume_secret=settings.resume_secret or "",
        cache=lambda: engines[0] if engines else None,
        events=told,
        bill=lambda *used: accounts.ledger.record(clock.wall_s(), *used),
        gauges=lambda: {**accounts.stats(), **traces.stats()},
        tracer=traces.tracer,
        identities=lambda: _stored_identities(engines[0].config) if engines else [],
    )

    async def load() -> Runner:
        core = await asyncio.to_thread(make_core, settings, events)
        if settings.cache.shared_url:
            await asyncio.to_thread(say_whether_it_answers, settings, events)
        engines.append(await asyncio.to_thread(open_cache_engine, settings, core, told.changed))
        return BatchingRunner(
            core,
            engines[0],
            waiting_max=config.waiting_max,
            request_deadline_s=config.request_deadline_s,
            cache_generated=settings.cache.cache_generated,
        )

    def on_ready(url: str, runner: Runner) -> None:
        core = runner.core
        text = f"ready on {url} (engine {core.engine_name}, model {core.model_id}, "
        events.emit(
            "ready",
            f"{text}{core.slots} slots of {core.context_tokens} tokens)",
            url=url,
            engine=core.engine_name,
            model=core.model_id,
            slots=core.slots,
        )

    try:
        run(app, bound, load, drain_s=config.drain_s, on_ready=on_ready, joiner=joiner)
    finally:
        for engine in engines:
            engine.close()
    events.emit("stopped", "stopped")


def _stored_identities(config: KVCacheConfig) -> list[dict[str, object]]:
    from pathlib import Path

    from bul.cache.tiers.disk.identities import stored_identities

    return stored_identities(Path(config.persistence_dir)) if config.enable_persistence else []


def make_core(settings: Settings, events: EventLog) -> ModelCore:
    """May take seconds: reads or even fetches the model."""
    if settings.serve.engine == "timed":
        from bul.inference.timed import TimedCore

        return TimedCore(settings.serve, settings.timed, block_tokens=settings.cache.block_tokens)
    from bul.inference.embedded import EmbeddedCore
    from bul.inference.model_file import resolve_model

    path = resolve_model(settings.serve.model, lambda line: events.emit("model", line))
    return EmbeddedCore(path, settings.serve, block_tokens=settings.cache.block_tokens)
