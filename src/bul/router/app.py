"""The router: replicas, clients, and the counters of both; its own pages and its life.

Refuses global state: a process may hold several routers, each with its own replicas. Membership
comes from a static list or from a driver through `set_replicas`; who may read `/replicas` and
`/metrics` is decided by the gate that the wiring hands in.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from bul.config import RouteConfig
from bul.errors import ConfigError
from bul.router import pages
from bul.router.budget import RetryBudget
from bul.router.client import ClientConnection
from bul.router.events import Follower
from bul.router.exchange import Exchange
from bul.router.heads import KnownHeads
from bul.router.health import FAILURES_MAX, Prober
from bul.router.hedge import FirstBytes, Percentile
from bul.router.http1 import Request, error_response
from bul.router.judge import Judge
from bul.router.limit import ConcurrencyLimit
from bul.router.membership import Discovery, Membership, Resolve, resolve_name
from bul.router.prompt import Prompt, read_prompt, session_of
from bul.router.quota import OverLimit, Quotas
from bul.router.rates import Rates
from bul.router.replica import DOWN, IDLE_S, READY, REMOVED, Replica
from bul.router.traced import make_exchange
from bul.router.waiting import WaitingLine
from bul.tracing import Tracer

__all__ = ["Router"]

SWEEP_S = 0.1
SWEEP_LATE_S = 0.1
"""A sweep later than this says that the loop was busy: what is silent may have been unread."""
TRIES_MAX = 4
REPLICAS_OWN = b"/v1/"
"""No page of the router's is below this."""
BACKLOG = 4096

Gate = Callable[[Iterable[tuple[bytes, bytes]]], bool]


class Router:
    """One listening router. Make it, `await start()`, and `await stop()` at the end.

    gate: says whether a request with these headers may read /replicas and /metrics. text_secret:
    of the region, the key of prompts' hints. resolve: of the names of `config.discover`.
    tracer: begins requests' traces; None for none.
    """

    def __init__(
        self,
        config: RouteConfig,
        *,
        gate: Gate = lambda _headers: True,
        text_secret: bytes = b"",
        resume_secret: str | None = "",
        quotas: Quotas | None = None,
        resolve: Resolve = resolve_name,
        tracer: Tracer | None = None,
    ) -> None:
        self.config = config
        self.tracer = tracer
        self.url = ""
        self.coarse_s = 0.0
        """The time, as of the last sweep: deadlines are no finer than that."""
        self.arrivals = self.completed = self.cancelled = self.retries = self.refused = 0
        self.broken = self.timeouts = self.invalid = self.slow_clients = self.turned_away = 0
        self.hedges = self.hedges_won = self.resumed = self.over_limit = 0
        self.rates = Rates()
        self.first_bytes = FirstBytes(config.hedge_delay_min_s)
        self.stream_gaps = Percentile()
        """The longest gaps of all replicas' streams."""
        self.hedges_at_all = config.hedge_delay_min_s > 0
        self.waiting = WaitingLine(config.queue_max, config.queue_deadline_s, fair=config.fair)
        self.quotas = quotas or Quotas({}, lambda _headers: None)
        self.more_metrics: Callable[[], str] = str
        """Of whoever runs this router, in Prometheus' text format; shown at /metrics too."""
        self.more_pages: Mapping[bytes, pages.Page] = {}
        """Of whoever runs this router, by path."""
        self.heads = KnownHeads()
        self.now_s: Callable[[], float] = time.monotonic
        self._gate = gate
        self._text_secret = text_secret
        self.resume_secret = resume_secret if config.resume_streams else None
        self._by_prefix = config.policy == "prefix"
        by_session = config.session_header.lower().encode(), config.session_cookie.encode()
        self._session = by_session if config.policy == "session" else None
        self._replicas: dict[str, Replica] = {}
        self._probers: dict[str, Prober] = {}
        self.followers: dict[str, Follower] = {}
        """Of the replicas' block events, by URL; empty if no policy asks for them."""
        self._ready: tuple[Replica, ...] = ()
        self.queued = self.shed = self._counted = 0
        self.members = Membership(
            ttl_s=config.member_ttl_s,
            members_max=config.members_max,
            on_change=self._set_members,
            on_reborn=self._reborn,
            on_silent=self._silent,
        )
        self.discovery = Discovery(
            config.discover,
            self.members,
            interval_s=config.discover_interval_s,
            resolve=resolve,
        )
        self.judge = Judge(config, self.rates)
        self._budget = RetryBudget(share=config.retry_share, at_least=config.retries_at_least)
        self._clients: dict[ClientConnection, None] = {}
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._drained = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> str:
        """Listen and probe; returns the URL. Raises ConfigError if the port is taken."""
        config = self.config
        self._loop = asyncio.get_running_loop()
        self.now_s = self._loop.time
        try:
            self._server = await self._loop.create_server(
                lambda: ClientConnection(self), config.host, config.port, backlog=BACKLOG
            )
        except OSError as error:
            hint = "choose another one with --port, or --port 0 for any free one"
            where = f"{config.host}:{config.port}"
            raise ConfigError(f"cannot listen on {where}: {error.strerror}", hint=hint) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.coarse_s = self.now_s()
        self._sweeper = self._loop.create_task(self._sweep())
        self.set_replicas(config.replicas)
        self.discovery.start()
        return self.url

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Take no new connection, let answers under way finish for `drain_s`, then break off."""
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.end_when_idle()
        self._drained.clear()
        if self._clients and drain_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), drain_s)
        for client in list(self._clients):
            client.abort()
        await self.discovery.stop()
        self.members.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await asyncio.gather(*self._leaving)

    def set_replicas(self, urls: Sequence[str]) -> None:
        """The replicas from now on, beside those that join or are discovered. Known ones keep
        their state, requests under way their replica. Raises ConfigError for a URL that is none;
        then nothing has changed.
        """
        self.members.set_static(urls)

    def _set_members(self, urls: Sequence[str]) -> None:
        wanted = {
            url.rstrip("/"): self._replicas.get(url.rstrip("/"))
            or Replica(
                url,
                self._changed,
                residency_tokens=self.config.residency_tokens,
                limit=self._limit(),
                stream_gaps=self.stream_gaps,
            )
            for url in urls
        }
        for url in self._replicas.keys() - wanted.keys():
            self._replicas[url].set_state(REMOVED)
            self._retire(self._probers.pop(url))
            if url in self.followers:
                self._retire(self.followers.pop(url))
        added = wanted.keys() - self._replicas.keys()
        self._replicas = wanted
        for url in added:
            self._probers[url] = self._start_prober(wanted[url])
            if self._by_prefix and self.config.block_events:
                self.followers[url] = self._start_follower(wanted[url])
        self._changed()

    def _limit(self) -> ConcurrencyLimit:
        config = self.config
        return ConcurrencyLimit(
            config.in_flight_max,
            per_slot=config.in_flight_per_slot,
            has_target=config.first_byte_target_s > 0,
        )

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return tuple(self._replicas.values())

    @property
    def ready(self) -> tuple[Replica, ...]:
        return self._ready

    @property
    def clients(self) -> int:
        return len(self._clients)

    # What clients call.

    def may_see(self, request: Request) -> bool:
        """Whether a guarded page is for who asks."""
        return self._gate([(b"authorization", value) for value in request.authorization])

    def admit(self, client: ClientConnection) -> bool:
        """Count a new connection in; False when there are too many."""
        if len(self._clients) >= self.config.connections_max:
            self.turned_away += 1
            return False
        self._clients[client] = None
        return True

    def left(self, client: ClientConnection) -> None:
        self._clients.pop(client, None)
        if not self._clients:
            self._drained.set()

    def handle(self, client: ClientConnection, request: Request) -> None:
        """Answer one of our own pages, or send the request to a replica."""
        if not request.target.startswith(REPLICAS_OWN):
            page = pages.own_page(self, request)
            if page is not None:
                client.write(page)
                client.answered(close=not request.keep_alive)
                return
        client.deadline_s = math.inf
        self.arrivals += 1
        prompt = read_prompt(request, hints=self._by_prefix, secret=self._text_secret)
        if self._session is not None:
            prompt = prompt.of_session(session_of(request, *self._session))
        charge = None
        if self.quotas.limits_at_all:
            try:
                charge = self.quotas.admit(request, prompt, self.coarse_s)
            except OverLimit as over:
                self._refuse(client, request, over)
                return
        if self.tracer is None:
            exchange = Exchange(self, client, request, prompt, charge)
        else:
            exchange = make_exchange(self.tracer, self, client, request, prompt, charge)
        client.exchange = exchange
        exchange.dispatch()

    def _refuse(self, client: ClientConnection, request: Request, over: OverLimit) -> None:
        self.over_limit += 1
        close, seconds, code = not request.keep_alive, over.retry_after_s, "rate_limit_exceeded"
        client.write(error_response(429, str(over), code, close=close, retry_after_s=seconds))
        client.answered(close=close)

    # What exchanges call.

    def pick(self, prompt: Prompt, tried: tuple[Replica, ...]) -> Replica | None:
        """The replica for the next request; None if none but those in `tried` is ready and has
        room.
        """
        return self.judge.pick(self._ready, prompt, tried, self.coarse_s)

    def may_retry(self, tried: tuple[Replica, ...]) -> bool:
        """Whether another replica may try; if so, that is taken from the budget."""
        if len(tried) >= TRIES_MAX or all(replica in tried for replica in self._ready):
            return False
        self._count_arrivals()
        return self._budget.take(self.now_s())

    def freed(self) -> None:
        """A replica may have room again: whoever waits is served, in the loop's next turn."""
        if self.waiting.size and self._loop is not None:
            self._loop.call_soon(self._serve_waiting)

    def failed(self, replica: Replica) -> None:
        """A request failed on this replica; three in a row eject it."""
        replica.failures += 1
        replica.failures_in_a_row += 1
        prober = self._probers.get(replica.url)
        if prober is None:
            return
        if replica.failures_in_a_row >= FAILURES_MAX:
            prober.eject()
        prober.soon()

    def outrun(self, replica: Replica) -> None:
        """A second replica answered before this one began; three in a row eject it."""
        self.hedges_won += 1
        self.failed(replica)

    def probe_soon(self, replica: Replica) -> None:
        prober = self._probers.get(replica.url)
        if prober is not None:
            prober.soon()

    # The rest is its own.

    def _changed(self) -> None:
        self._ready = tuple(r for r in self._replicas.values() if r.state == READY)
        self.freed()

    def _count_arrivals(self) -> None:
        """Into the budget, all since the last time at once."""
        self._budget.request(self.coarse_s, self.arrivals - self._counted)
        self._counted = self.arrivals

    def _serve_waiting(self) -> None:
        for _ in range(len(self.waiting)):
            if not any(replica.in_flight < replica.limit.now for replica in self._ready):
                return
            self.waiting.next().dispatch()

    def _start_prober(self, replica: Replica) -> Prober:
        prober = Prober(
            replica,
            interval_s=self.config.probe_interval_s,
            timeout_s=self.config.probe_timeout_s,
            deep_interval_s=self.config.deep_probe_interval_s,
            deep_timeout_s=self.config.deep_probe_timeout_s,
            now_s=self.now_s,
        )
        prober.start()
        return prober

    def _start_follower(self, replica: Replica) -> Follower:
        secret = self.config.operator_secret.encode()
        follower = Follower(
            replica,
            now_s=self.now_s,
            authorization=b"Bearer " + secret if secret else b"",
            connect_timeout_s=self.config.connect_timeout_s,
        )
        follower.start()
        return follower

    def _retire(self, leaving: Prober | Follower) -> None:
        task = asyncio.get_running_loop().create_task(leaving.stop())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _reborn(self, url: str) -> None:
        """Another process has this address now: it holds nothing, and may be ready at once."""
        self._replicas[url].residency.clear()
        self._probers[url].soon()

    def _silent(self, url: str) -> None:
        """It leaves, and not of its own will: what it has under way is asked elsewhere."""
        self._replicas[url].set_state(DOWN)

    async def _sweep(self) -> None:
        """End what is past its deadline."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._count_arrivals()
            before_s, self.coarse_s = self.coarse_s, self.now_s()
            now_s = self.coarse_s
            late = now_s - before_s > SWEEP_S + SWEEP_LATE_S
            for replica in self._replicas.values():
                replica.close_idle_since(now_s - IDLE_S)
            self.members.expire(now_s)
            for follower in self.followers.values():
                follower.check()
            for client in list(self._clients):
                exchange = client.exchange
                if exchange is not None and exchange.deadline_s < now_s:
                    exchange.expire(now_s)
                elif exchange is not None:
                    if not late:
                        exchange.hedge(now_s)
                elif client.deadline_s < now_s:
                    client.expire()
