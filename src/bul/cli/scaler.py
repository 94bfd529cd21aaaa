"""The autoscaler of a running region: its signals, its policy, its history, wired together.

Refuses to act on half a picture: if one of the replicas that the router sends to does not show
its figures, there are no signals, and nothing is scaled.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from bul.cli.events import EventLog
from bul.clock import SystemClock
from bul.config import Settings
from bul.errors import ConfigError
from bul.router.app import Router
from bul.scaling.adaptive import Capacity
from bul.scaling.decision import Direction
from bul.scaling.drivers.contract import Driver, Replica
from bul.scaling.drivers.logfile import BoundedLog
from bul.scaling.exposition import ScalerMetrics
from bul.scaling.figures import ReplicaFigures, figures_of
from bul.scaling.history import History, Record
from bul.scaling.lease import FileLease
from bul.scaling.loop import IntelligentAutoScaler
from bul.scaling.measure import CapacityMeter, ColdStarts, Meter, RouterFigures
from bul.scaling.registry import PRESETS
from bul.scaling.signals import Signals

__all__ = ["HISTORY_FILE", "RegionScaler", "ScaleLimits", "scale_limits"]

HISTORY_FILE = "decisions.jsonl"
LEASE_FILE = "scaler.lock"
SAMPLE_S = 0.25
CHANGES_SHOWN = 100
FIGURES_S = 2.0
FIGURES_BYTES_MAX = 4 << 20
COLD_START_EXPECTED_S = {"timed": 2.0, "embedded": 10.0}
"""Until one was measured."""
ATTRIBUTES = frozenset(("scale_up_threshold", "scale_down_threshold"))
"""Of the scaler itself, as in the guide, and so not a policy's settings."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScaleLimits:
    """What the flags, or the scenario behind them, come to. settings: of the policy."""

    min_replicas: int
    max_replicas: int
    settings: Mapping[str, object]


def scale_limits(settings: Settings) -> ScaleLimits | None:
    """None when nothing asked for a scaler. Raises ConfigError for limits that contradict."""
    scale = settings.scale
    preset = PRESETS.get(scale.scenario)
    most = scale.max_replicas or (preset.max_replicas if preset else 0)
    if not most and scale.advise:
        most = settings.up.replicas_max
    if not most:
        return None
    least = scale.min_replicas or (preset.min_replicas if preset else settings.up.replicas)
    if least > most and settings.origin("up.replicas") == "default":
        least = most
    if least > most:
        raise ConfigError(f"[scale] max_replicas must be at least {least} replicas, was {most}")
    return ScaleLimits(
        min_replicas=least, max_replicas=most, settings=_policy_settings(settings, preset is None)
    )


def _policy_settings(settings: Settings, plain: bool) -> dict[str, object]:
    scale = settings.scale
    preset = {} if plain else dict(PRESETS[scale.scenario].settings)
    up_s, down_s = scale.cooldown_up_s, scale.cooldown_down_s
    if scale.policy == "guide":
        return preset | _given(scale_up_cooldown=up_s, scale_down_cooldown=down_s)
    if scale.policy == "adaptive":
        given = _given(
            scale_up_cooldown_s=preset.get("scale_up_cooldown", -1.0) if up_s < 0 else up_s,
            scale_down_cooldown_s=preset.get("scale_down_cooldown", -1.0) if down_s < 0 else down_s,
        )
        return {
            "violation_max": scale.violation_max,
            "hold_base_s": scale.hold_s,
            "work_memory_s": scale.work_memory_s,
            "slots": settings.serve.slots,
            **given,
        }
    if scale.policy == "fixed":
        return {"replicas": scale.min_replicas or settings.up.replicas}
    return {"target": scale.target} if scale.target else {}


def _given(**seconds: typing.Any) -> dict[str, object]:
    return {name: value for name, value in seconds.items() if value >= 0}


def _without_attributes(settings: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name not in ATTRIBUTES}


def _nowhere(_: Record) -> None:
    pass


class RegionScaler:
    """Start it when the region listens, close it before the driver. `scaler` does the deciding.

    note: gets every record of the loop that leads, for the shared database.
    """

    def __init__(
        self,
        settings: Settings,
        limits: ScaleLimits,
        driver: Driver,
        router: Router,
        folder: Path,
        note: Callable[[Record], None] = _nowhere,
    ) -> None:
        self._note = note
        self._led: bool | None = None
        self._settings = settings
        self._events: EventLog | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._watchers: set[asyncio.Queue[Record]] = set()
        self._finding = ""
        self.metrics = ScalerMetrics()
        self.source = RegionSource(settings, driver, router)
        self.scaler = IntelligentAutoScaler(
            driver,
            self.source,
            policy=settings.scale.policy,
            settings=_without_attributes(limits.settings),
            history=History(BoundedLog(folder / HISTORY_FILE)),
            lease=FileLease(folder / LEASE_FILE),
            advisory=settings.scale.advise,
            stale_s=settings.scale.stale_s,
            on_record=self._on_record,
            routed=self.source.routed,
        )
        self.scaler.min_replicas = limits.min_replicas
        self.scaler.max_replicas = limits.max_replicas
        self.scaler.target_latency_p95 = settings.scale.slo_ttft_ms
        for name in ATTRIBUTES & limits.settings.keys():
            setattr(self.scaler, name, limits.settings[name])
        others = router.more_metrics
        router.more_metrics = lambda: others() + self._metrics_text()

    def shown(self) -> list[dict[str, object]]:
        """What the live page shows: the last changes, and the last decision whatever it was."""
        records = self.scaler.history.records()
        changes = [one for one in records if one.decision.direction is not Direction.HOLD]
        last = [one for one in records[-1:] if one.decision.direction is Direction.HOLD]
        return [one.document() for one in (*changes[-CHANGES_SHOWN:], *last)]

    async def start(self, events: EventLog) -> None:
        """Sample, tick and follow cold starts until closed."""
        self._events = events
        self._tasks = [
            asyncio.create_task(self.source.run()),
            asyncio.create_task(self._tick()),
        ]

    async def close(self) -> None:
        """No decision comes after this."""
        self._led = self.scaler.leads
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.scaler.close()
        await self.source.close()

    @property
    def leads(self) -> bool:
        """Whether this is the region's one scaler; once closed, whether it was."""
        return self.scaler.leads if self._led is None else self._led

    @contextlib.contextmanager
    def watching(self) -> typing.Iterator[asyncio.Queue[Record]]:
        """Records from now on; a reader that falls behind by a hundred misses some."""
        queue: asyncio.Queue[Record] = asyncio.Queue(maxsize=100)
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)

    async def _tick(self) -> None:
        while True:
            self._take_measurements()
            await self.scaler.check_and_scale()
            await asyncio.sleep(self._settings.scale.interval_s)

    def _take_measurements(self) -> None:
        """What was measured since counts from this tick on."""
        if self.scaler.policy == "adaptive":
            self.scaler.settings["capacity"] = self.source.capacity.capacity
            self.scaler.settings["cold_start_s"] = self.source.cold_starts.seconds

    def _on_record(self, record: Record) -> None:
        self.metrics.add(record)
        if self.leads:
            self._note(record)
        for queue in self._watchers:
            if not queue.full():
                queue.put_nowait(record)
        changed = record.finding != self._finding
        self._finding = record.finding
        if self._events is None or not (
            record.decision.direction is not Direction.HOLD or changed or record.decision.alert
        ):
            return
        facts = {name: value for name, value in record.document().items() if name != "text"}
        self._events.emit("scaling", record.line(), **facts)

    def _metrics_text(self) -> str:
        return self.metrics.text(
            capacity=self.source.capacity.capacity,
            cold_start_s=self.source.cold_starts.seconds,
        )


class RegionSource:
    """The signals of a region, from its router and from the replicas that the router sends to."""

    def __init__(self, settings: Settings, driver: Driver, router: Router) -> None:
        self._driver = driver
        self._router = router
        self._clock = SystemClock()
        self._meter = Meter(settings.scale.slo_ttft_ms / 1000.0)
        self.capacity = CapacityMeter(_expected_capacity(settings))
        self.cold_starts = ColdStarts(COLD_START_EXPECTED_S[settings.serve.engine])
        self._slots: dict[str, float] = {}
        self._samples = self._in_flight = self._waiting = 0.0
        self._client = httpx.AsyncClient(
            trust_env=False, timeout=FIGURES_S, headers=_key_header(settings)
        )

    def routed(self, url: str) -> bool:
        """Whether the router sends to this replica."""
        return any(replica.url == url for replica in self._router.ready)

    async def signals(self) -> Signals | None:
        """None when a replica does not show its figures, or there was no tick before."""
        urls = [replica.url for replica in self._router.ready]
        if not urls:
            return None
        found = await asyncio.gather(*(self._figures(url) for url in urls))
        figures = {url: one for url, one in zip(urls, found, strict=True) if one is not None}
        router = self._router_figures()
        if len(figures) < len(urls):
            return None
        self._slots = {url: one.slots for url, one in figures.items()}
        self.capacity.add(found := list(figures.values()))
        return self._meter.tick(self._clock.now_s(), self._clock.wall_s(), router, figures)

    async def run(self) -> None:
        """Sample what only the present shows, until cancelled."""
        while True:
            router = self._router
            in_line = len(router.waiting)
            ready = router.ready
            self._samples += 1
            self._in_flight += in_line + sum(one.in_flight for one in router.replicas)
            self._waiting += in_line + sum(
                max(one.in_flight - self._slots.get(one.url, one.in_flight), 0) for one in ready
            )
            with contextlib.suppress(Exception):  # the loop's own listing says what is wrong
                self._see_starts(await self._driver.replicas())
            await asyncio.sleep(SAMPLE_S)

    async def close(self) -> None:
        await self._client.aclose()

    def _see_starts(self, replicas: Sequence[Replica]) -> None:
        serving = [one.name for one in replicas if one.state == "ready" and self.routed(one.url)]
        starting = [
            one.name
            for one in replicas
            if one.state in ("pending", "ready") and one.name not in serving
        ]
        self.cold_starts.see(starting, serving, time.monotonic())

    def _router_figures(self) -> RouterFigures:
        """The means since the last call; empties what they are made of."""
        router, samples = self._router, max(self._samples, 1.0)
        waits_s = tuple(router.waiting.waits_s)
        router.waiting.waits_s.clear()
        figures = RouterFigures(
            arrivals=router.arrivals,
            failed=router.shed + router.refused + router.broken + router.timeouts,
            in_flight=self._in_flight / samples,
            waiting=self._waiting / samples,
            clients=router.clients,
            waits_s=waits_s,
        )
        self._samples = self._in_flight = self._waiting = 0.0
        return figures

    async def _figures(self, url: str) -> ReplicaFigures | None:
        try:
            response = await self._client.get(f"{url}/metrics")
            if response.status_code != httpx.codes.OK:
                return None
            return figures_of(response.text)
        except (httpx.HTTPError, ValueError):
            return None


def _expected_capacity(settings: Settings) -> Capacity | None:
    """The timed engine's rates are settings; any other engine's must be measured."""
    timed = settings.timed
    if settings.serve.engine != "timed" or not timed.time_scale:
        return None
    return Capacity(
        prefill_tokens_per_s=timed.prefill_tokens_per_s / timed.time_scale,
        output_tokens_per_s=timed.decode_tokens_per_s * settings.serve.slots / timed.time_scale,
        slots=settings.serve.slots,
    )


def _key_header(settings: Settings) -> dict[str, str]:
    if not settings.keys:
        return {}
    hint = "put the key named operator into a file and name it in [scale] key_file"
    if not settings.scale.key_file:
        raise ConfigError("[keys] are set: the scaler needs one to read the figures", hint=hint)
    try:
        key = Path(settings.scale.key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read [scale] key_file: {error}", hint=hint) from error
    return {"authorization": f"Bearer {key}"}
