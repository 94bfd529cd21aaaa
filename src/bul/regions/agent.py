"""The region's agent: one process's worth of everything that speaks with other regions.

Refuses to start without a name, a secret of 32 characters and addresses from the configuration, and
to do anything for a replica that another region's signature asks for.

Replicas tell it what they wrote and ask it for what they lack, on loopback, signed with the same
secret in the region's own name:

    /local/announce  /local/erase  /local/match  /local/get  /local/touch
    /local/purges  /local/status  /local/sync
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from bul.clock import Clock, SystemClock
from bul.config.regions import RegionsConfig
from bul.errors import ConfigError
from bul.regions import messages as m
from bul.regions.answers import Answers
from bul.regions.auth import Guard, Seal
from bul.regions.fetch import Fetcher
from bul.regions.journal import NoJournal, SqliteJournal
from bul.regions.node import Peer, RegionNode, Store
from bul.regions.order import Link
from bul.regions.outbox import Outbox, Pace
from bul.regions.peer import PeerApp, PeerClient
from bul.regions.replication import Replicator
from bul.regions.server import PeerServer
from bul.regions.state import RegionState
from bul.regions.versions import Graves, region_tag

__all__ = ["LOOPBACK", "RegionAgent", "check_config"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def check_config(config: RegionsConfig) -> None:
    """Raises ConfigError for what cannot work."""
    if not config.name:
        raise ConfigError("this region has no name", hint="set name in [regions]")
    if not config.peer_secret:
        hint = "set peer_secret in [regions], the same in all regions"
        raise ConfigError("regions need a secret to know each other by", hint=hint)
    names = (config.name, *config.peer_urls)
    if len({region_tag(name) for name in names}) < len(names):
        raise ConfigError("two regions have names of the same tag", hint="rename one of them")


class RegionAgent:
    """start, stop. One event loop. store: where the region's bytes lie."""

    def __init__(
        self,
        config: RegionsConfig,
        store: Store,
        journal: SqliteJournal | NoJournal | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_config(config)
        self.config = config
        self._clock = clock = clock or SystemClock()
        journal = journal or NoJournal()
        state = _state(config)
        if isinstance(journal, SqliteJournal):
            state.restore(*journal.load())
        self.node = RegionNode(
            state,
            {name: _peer(name, config) for name in config.peer_urls},
            store,
            journal,
            wall_ms=lambda: int(clock.wall_s() * 1000),
            now_s=clock.now_s,
        )
        self._seal = Seal(config.peer_secret, config.name)
        self.clients = {
            name: PeerClient(self._seal, name, url, clock) for name, url in config.peer_urls.items()
        }
        self.fetcher = Fetcher(
            self.node, self._ask, deadline_s=config.deadline_s, now_s=clock.now_s
        )
        self._replicator = Replicator(
            self.node,
            self.clients,
            now_s=clock.now_s,
            compare_interval_s=config.compare_interval_s,
            warm_blocks=config.warm_blocks,
        )
        self._guard = Guard(
            self._seal, (config.name, *config.peer_urls), body_bytes_max=m.BODY_BYTES_MAX
        )
        self._answers = Answers(self.node)
        self._local: dict[str, Callable[[bytes], Awaitable[bytes]]] = {
            "announce": self._on_announce,
            "erase": self._on_erase,
            "match": self._on_match,
            "get": self._on_get,
            "touch": self._on_touch,
            "purges": self._on_purges,
            "status": self._on_status,
            "sync": self._on_sync,
        }
        self._server: PeerServer | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None, "start it first"
        return self._server.url

    async def start(self) -> None:
        """Listen and begin to talk. Raises ConfigError if the port is taken."""
        pages = {}
        if self.config.host in LOOPBACK:
            pages["/metrics"] = lambda: (CONTENT_TYPE_LATEST.encode(), self.metrics())
        handlers = {"peer": self._answers.answer, "local": self._on_local}
        app = PeerApp(self._guard, self._seal, handlers, self._clock, pages)
        self._server = PeerServer(app, self.config.host, self.config.port)
        await self._server.start()
        await self.node.settle()
        self._replicator.start()

    async def stop(self) -> None:
        await self._replicator.stop()
        if self._server is not None:
            await self._server.stop()
        for client in self.clients.values():
            await client.close()

    async def sync(self) -> dict[str, int]:
        """Compare with everybody now; records that differed, -1 for who does not answer."""
        return await self._replicator.sync()

    def status(self) -> dict[str, Any]:
        """Figures, as `bul regions status` shows them. Names have their unit last."""
        state, now_s = self.node.state, self._clock.now_s()
        return {
            "region": state.region,
            "entries": len(state.catalogue),
            "present": sum(entry.present for entry in state.catalogue),
            "graves": len(state.graves),
            "purge_version": state.graves.purge_version,
            "damaged_total": self.node.damaged_total,
            "refused_requests_total": self._guard.refused_total,
            "refused_future_total": state.refused_future_total,
            "fetch_asked_total": self.fetcher.asked_total,
            "fetch_hedged_total": self.fetcher.hedged_total,
            "fetch_found_total": self.fetcher.found_total,
            "fetch_spared_total": self.fetcher.spared_total,
            "peers": {name: self._peer_status(name, now_s) for name in self.node.peers},
        }

    def metrics(self) -> bytes:
        """The same in Prometheus' text format; lag and backlog by peer."""
        registry = CollectorRegistry()
        registry.register(_Gauges(self.status()))
        return generate_latest(registry)

    def _peer_status(self, name: str, now_s: float) -> dict[str, Any]:
        peer, client = self.node.peers[name], self.clients[name]
        link, outbox = peer.link, peer.outbox
        oldest_s = outbox.oldest_s()
        return {
            "reachable": link.rtt_s is not None and not link.breaker.is_open,
            "synced": link.synced,
            "rtt_ms": round(1000 * (link.rtt_s or 0.0), 2),
            "lag_p50_ms": round(1000 * peer.lags.quantile_s(0.5), 1),
            "lag_p99_ms": round(1000 * peer.lags.quantile_s(0.99), 1),
            "backlog_keys": len(outbox),
            "backlog_bytes": outbox.bytes,
            "backlog_age_s": round(now_s - oldest_s, 3) if oldest_s is not None else 0.0,
            "pushes_under_way": peer.pushing,
            "dropped_total": outbox.dropped_total,
            "pushed_blocks_total": peer.pushed_blocks_total,
            "pushed_bytes_total": peer.pushed_bytes_total,
            "pulled_blocks_total": peer.pulled_blocks_total,
            "pulled_bytes_total": peer.pulled_bytes_total,
            "compared_total": peer.reconciled_total,
            "sent_bytes_total": client.sent_bytes_total,
            "received_bytes_total": client.received_bytes_total,
            "encoding": peer.benefit.choice,
        }

    async def _ask(self, region: str, path: str, body: bytes, deadline_s: float) -> bytes:
        return await self.clients[region].ask(path, body, deadline_s)

    # what this region's own replicas ask

    async def _on_local(self, region: str, path: str, body: bytes) -> bytes:
        if path not in self._local:
            raise m.MessageInvalid(f"no {path!r} here")
        return await self._local[path](body)

    async def _on_announce(self, body: bytes) -> bytes:
        offer, _ = m.unpack(body, m.Offer)
        fresh = [m.entry_of(item, present=True) for item in offer.items]
        # A block that is known was promoted or computed again: it is here now, and was wanted.
        news = [entry for entry in fresh if not (entry.tokens and self._is_known(entry.key))]
        await self.node.announce(news)
        return m.pack(m.Wanted([]))

    def _is_known(self, key: bytes) -> bool:
        entry = self.node.entry(key)
        if entry is None:
            return False
        entry.hits += 1
        entry.present = True
        return True

    async def _on_erase(self, body: bytes) -> bytes:
        offer, _ = m.unpack(body, m.Offer)
        known = [at for at, stone in enumerate(offer.stones) if self.node.entry(stone.target)]
        for stone in offer.stones:
            await self.node.erase(stone.kind, stone.target)
        return m.pack(m.Wanted(known))

    async def _on_match(self, body: bytes) -> bytes:
        message, _ = m.unpack(body, m.Get)
        return m.pack(m.Wanted([self.fetcher.likely(message.keys)]))

    async def _on_get(self, body: bytes) -> bytes:
        message, _ = m.unpack(body, m.Get)
        found = await self.fetcher.fetch(message.keys)
        pairs = [found[key] for key in message.keys if key in found]
        records = [m.record(item, payload) for item, payload in pairs]
        return m.pack(m.Blocks([item for item, _ in pairs]), records)

    async def _on_touch(self, body: bytes) -> bytes:
        message, _ = m.unpack(body, m.Get)
        for key in message.keys:
            entry = self.node.entry(key)
            if entry is not None:
                entry.hits += 1
        return m.pack(m.Wanted([]))

    async def _on_purges(self, body: bytes) -> bytes:
        return m.pack(m.Wanted([self.node.state.graves.purge_version]))

    async def _on_status(self, body: bytes) -> bytes:
        return msgspec.json.encode(self.status())

    async def _on_sync(self, body: bytes) -> bytes:
        return msgspec.json.encode(await self.sync())


class _Gauges(Collector):
    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> Any:
        for name, value in self._status.items():
            if isinstance(value, int | float):
                gauge = GaugeMetricFamily(f"bul_regions_{name}", "See docs/reference/regions.md.")
                gauge.add_metric([], value)
                yield gauge
        peers: dict[str, dict[str, Any]] = self._status["peers"]
        names = [name for peer in list(peers.values())[:1] for name in peer]
        for name in names:
            gauge = GaugeMetricFamily(
                f"bul_regions_peer_{name}", "See docs/reference/regions.md.", labels=["peer"]
            )
            for region, peer in peers.items():
                if isinstance(peer[name], int | float):
                    gauge.add_metric([region], float(peer[name]))
            if gauge.samples:
                yield gauge


def _state(config: RegionsConfig) -> RegionState:
    graves = Graves(graves_max=config.graves_max, horizon_ms=int(config.horizon_s * 1000))
    return RegionState(config.name, entries_max=config.entries_max, graves=graves)


def _peer(name: str, config: RegionsConfig) -> Peer:
    return Peer(Link(name), Outbox(config.queue_keys_max), Pace(config.rate_bytes_per_s))
