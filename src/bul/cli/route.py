"""`bul route`: the router alone, in front of replicas that run elsewhere."""

from __future__ import annotations

import asyncio
import resource
import signal
import typing

import click
import msgspec

from bul.cli.options import load as load_settings
from bul.cli.options import setting

if typing.TYPE_CHECKING:
    from bul.cli.events import EventLog
    from bul.cli.tracing import Tracing
    from bul.config import Settings
    from bul.router.app import Router

__all__ = ["command", "make_router"]


@click.command(name="route")
@setting("route.replicas", "--replica", help="A replica's URL; give it once per replica.")
@setting("route.host", "--host", help="Beyond loopback, [keys] must hold an API key.")
@setting("route.port", "--port", help="0 asks the system for a free one.")
@setting("route.policy", "--policy", help="prefix, session, least_conn or round_robin.")
@setting("route.session_header", "--session-header", help="Whose request it is, for `session`.")
@setting("route.session_cookie", "--session-cookie", help="The same, without such a header.")
@setting("route.explain", "--explain", help="Log each decision's scores as a JSON line.")
@setting("route.block_events", "--block-events", help="Follow what replicas tell of their caches.")
@setting("route.members", "--members", help="Let replicas join by themselves: bul serve --join.")
@setting("route.member_ttl_s", "--member-ttl-s", help="A member's longest silence.")
@setting("route.members_max", "--members-max", help="Of those that join, and of each name.")
@setting("route.discover", "--discover", help="A URL whose host's name has several addresses.")
@setting("route.discover_interval_s", "--discover-interval-s")
@setting("route.connect_timeout_s", "--connect-timeout-s")
@setting("route.response_timeout_s", "--response-timeout-s", help="A replica's longest silence.")
@setting("route.connections_max", "--connections-max", help="Clients at the same time.")
@setting("route.probe_interval_s", "--probe-interval-s")
@setting("route.probe_timeout_s", "--probe-timeout-s")
@setting("route.deep_probe_interval_s", "--deep-probe-interval-s", help="One token; 0: never.")
@setting("route.deep_probe_timeout_s", "--deep-probe-timeout-s")
@setting("route.retry_share", "--retry-share", help="Second tries per request, at most.")
@setting("route.retries_at_least", "--retries-at-least", help="In ten seconds, allowed always.")
@setting("route.hedge_delay_min_s", "--hedge-delay-min-s", help="Silence before a second replica.")
@setting("route.resume_streams", "--resume-streams", help="Go on elsewhere when one dies.")
@setting("route.residency_tokens", "--residency-tokens", help="KV that a replica keeps, about.")
@setting("route.in_flight_max", "--in-flight-max", help="Of one replica; adapts below it.")
@setting("route.in_flight_per_slot", "--in-flight-per-slot", help="Of a replica that tells.")
@setting("route.first_byte_target_s", "--first-byte-target-s", help="Later is overload; 0: off.")
@setting("route.queue_max", "--queue-max", help="Requests that may wait for room.")
@setting("route.queue_deadline_s", "--queue-deadline-s", help="Then they get 429.")
@setting("route.fair", "--fair", help="Keys take turns by tokens, not by arrival.")
@setting("route.drain_s", "--drain-s", help="For running answers after SIGTERM.")
@setting("up.log_format", "--log-format")
def command(**values: object) -> None:
    """The router alone, on port 8000, in front of any OpenAI-compatible servers.

    Its own pages: /health, /ready, /replicas and /metrics. SIGTERM lets running answers finish.

    Example: bul route --replica http://127.0.0.1:8002 --replica http://127.0.0.1:8003
    """
    import uvloop

    from bul.cli.accounts import kept_accounts
    from bul.cli.events import EventLog
    from bul.cli.tracing import tracing
    from bul.errors import ConfigError

    settings = load_settings(values)
    route = settings.route
    if not (route.replicas or route.members or route.discover):
        hint = "--replica http://127.0.0.1:8002, --discover or --members"
        raise ConfigError("no replica is given", hint=hint)
    _raise_file_limit()
    with (
        kept_accounts(settings) as accounts,
        tracing(settings, "router") as traces,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        router = make_router(settings, accounts.ring, traces)
        runner.run(_route(router, EventLog(settings.up.log_format)))


def make_router(
    settings: Settings,
    keys: typing.Mapping[str, str] | None = None,
    traces: Tracing | None = None,
) -> Router:
    """A router for these settings, not started. Raises ConfigError for an open bind without a
    key. /replicas and /metrics add up all tenants, so only the operator's key opens them.
    """
    from bul.blocks.text_chain import text_secret
    from bul.cli.tracing import metrics_text
    from bul.router.app import Router
    from bul.router.quota import Quotas
    from bul.service.auth import Gate, check_bind

    keys = settings.keys if keys is None else keys
    check_bind(settings.route.host, keys)
    gate = Gate(keys)

    def may_see(headers: typing.Iterable[tuple[bytes, bytes]]) -> bool:
        tenant = gate.tenant_of(headers)
        return tenant is not None and gate.may_see_totals(tenant)

    router = Router(
        settings.route,
        gate=may_see,
        resume_secret=settings.resume_secret,
        text_secret=text_secret(settings.serve.cache_secret),
        quotas=Quotas(settings.key_limits, gate.tenant_of),
        tracer=traces.tracer if traces is not None else None,
    )
    if traces is not None and traces.tracer is not None:
        router.more_metrics = lambda: metrics_text(traces.stats())
    if settings.route.explain:
        router.judge.explain = _explain
    return router


def _explain(decision: typing.Mapping[str, object]) -> None:
    click.echo(msgspec.json.encode(decision), err=True)


async def _route(router: Router, events: EventLog) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    url = await router.start()
    config = router.config
    text = f"ready on {url} ({config.policy} over {len(config.replicas)} replicas)"
    events.emit("ready", text, url=url, policy=config.policy, replicas=list(config.replicas))
    await stop.wait()
    await router.stop(drain_s=config.drain_s)
    events.emit("stopped", "stopped")


def _raise_file_limit() -> None:
    """Each client and each replica's connection is a file; the default of 1024 is soon used up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
