"""From counters of a router and its replicas to `Signals`: what arrived, and how it was served.

Refuses to count what was answered for what was asked: under overload a region answers what it can,
and a scaler that sees only that would find it just large enough. So work is arrivals, counted at
the router, times the mean size of the requests that ended in the last minute. Refuses to guess
before a request has ended (None), and to take a replica's life for another one's.

    slow share = (first tokens later than the target + turned away + kept in line for longer)
                 / (first tokens + turned away)

First tokens are counted in the buckets of the replicas' histograms; inside a bucket they are taken
to be spread evenly.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence

from bul.metrics.snapshot import quantile
from bul.scaling.adaptive import Capacity
from bul.scaling.figures import ReplicaFigures
from bul.scaling.signals import Signals

__all__ = ["CapacityMeter", "ColdStarts", "Meter", "RouterFigures"]

WINDOW_S = 60.0
FORGOTTEN_S = 600.0
"""A replica that has not been seen for so long is a new one when it returns."""
CLOCK_SLACK_S = 1.0
SMOOTHING = 0.3
STARTS_KEPT = 5
STARTS_FOLLOWED_MAX = 1024

Buckets = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RouterFigures:
    """arrivals, failed: since the start; failed ones got no whole answer. in_flight, waiting:
    means since the last tick, of requests sent to replicas or in line, and of those without a
    slot. waits_s: in line, of those served since the last tick.
    """

    arrivals: int
    failed: int
    in_flight: float
    waiting: float
    clients: int
    waits_s: Sequence[float] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Tick:
    """What happened in one interval, in all replicas together."""

    at_s: float
    finished: float
    prompt_tokens: float
    cached_tokens: float
    output_tokens: float
    ttft: Buckets
    busy: float
    waits_s: Sequence[float]


class Meter:
    """target_s: a first token later than this is slow. One call of `tick` an interval."""

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s
        self._ticks: deque[_Tick] = deque()
        self._seen: dict[str, tuple[float, ReplicaFigures]] = {}
        self._router: RouterFigures | None = None
        self._at_s = self._wall_s = math.nan
        self._means: tuple[float, float] | None = None
        """Uncached prompt tokens and reply tokens of a request; kept over quiet hours."""

    def tick(
        self,
        now_s: float,
        wall_s: float,
        router: RouterFigures,
        replicas: Mapping[str, ReplicaFigures],
    ) -> Signals | None:
        """What the interval since the last call showed; None for the first one."""
        before, elapsed_s, since_wall_s = self._router, now_s - self._at_s, self._wall_s
        self._router, self._at_s, self._wall_s = router, now_s, wall_s
        tick = self._tick_of(now_s, elapsed_s, since_wall_s, router, replicas)
        if before is None or not elapsed_s > 0:
            return None
        self._ticks.append(tick)
        while self._ticks[0].at_s <= now_s - WINDOW_S:
            self._ticks.popleft()
        self._learn()
        return self._signals(now_s, elapsed_s, before, router, replicas)

    def _tick_of(
        self,
        now_s: float,
        elapsed_s: float,
        since_wall_s: float,
        router: RouterFigures,
        replicas: Mapping[str, ReplicaFigures],
    ) -> _Tick:
        changes = []
        for url, now in replicas.items():
            _, before = self._seen.get(url, (0.0, None))
            if before is not None and before.started_s == now.started_s:
                changes.append((before, now))
            elif now.started_s >= since_wall_s - CLOCK_SLACK_S:
                changes.append((_BORN, now))  # all that it counted was since the last tick
            self._seen[url] = (now_s, now)
        self._seen = {
            url: seen for url, seen in self._seen.items() if seen[0] > now_s - FORGOTTEN_S
        }
        busy = [_busy(before, now) / elapsed_s for before, now in changes]
        return _Tick(
            at_s=now_s,
            finished=sum(now.finished - before.finished for before, now in changes),
            prompt_tokens=sum(now.prompt_tokens - before.prompt_tokens for before, now in changes),
            cached_tokens=sum(now.cached_tokens - before.cached_tokens for before, now in changes),
            output_tokens=sum(now.output_tokens - before.output_tokens for before, now in changes),
            ttft=_added([_new(before.ttft, now.ttft) for before, now in changes]),
            busy=sum(min(share, 1.0) for share in busy) / max(len(busy), 1),
            waits_s=tuple(router.waits_s),
        )

    def _learn(self) -> None:
        finished = sum(tick.finished for tick in self._ticks)
        if finished < 1:
            return
        prompt = sum(tick.prompt_tokens - tick.cached_tokens for tick in self._ticks)
        self._means = prompt / finished, sum(t.output_tokens for t in self._ticks) / finished

    def _signals(
        self,
        now_s: float,
        elapsed_s: float,
        before: RouterFigures,
        router: RouterFigures,
        replicas: Mapping[str, ReplicaFigures],
    ) -> Signals:
        arrivals = router.arrivals - before.arrivals
        failed = router.failed - before.failed
        rate = arrivals / elapsed_s
        uncached, reply = self._means or (None, None)
        if rate == 0.0:
            uncached, reply = uncached or 0.0, reply or 0.0
        tick = self._ticks[-1]
        prompt = sum(t.prompt_tokens for t in self._ticks)
        delay_s = max([figures.queue_delay_s for figures in replicas.values()], default=0.0)
        rates = [figures.prefill_tokens_per_s for figures in replicas.values()]
        return Signals(
            measured_at_s=now_s,
            replicas_ready=0,
            requests_per_second=rate,
            ttft_p95_ms=self._ttft_p95_ms(delay_s),
            slow_share=self._slow_share(tick, failed),
            utilization=tick.busy,
            cache_hit_rate=sum(t.cached_tokens for t in self._ticks) / prompt if prompt else None,
            error_rate=min(failed / arrivals, 1.0) if arrivals else 0.0,
            active_connections=router.clients,
            in_flight=router.in_flight,
            waiting=router.waiting,
            queue_delay_ms=max(quantile(tick.waits_s, 0.95) or 0.0, delay_s) * 1000.0,
            prefill_tokens_per_s=None if uncached is None else rate * uncached,
            output_tokens_per_s=None if reply is None else rate * reply,
            ttft_idle_ms=_idle_ms(uncached, rates),
        )

    def _ttft_p95_ms(self, delay_s: float) -> float:
        """Of the last minute, the wait in line included. When no first token came at all, as long
        as the oldest has waited; a region that nobody asks is fast, not unknown.
        """
        served = _added([tick.ttft for tick in self._ticks])
        waits_s = [wait_s for tick in self._ticks for wait_s in tick.waits_s]
        in_line_s = quantile(waits_s, 0.95) or 0.0
        if not served or served[-1][1] < 1:
            return max(delay_s, in_line_s) * 1000.0
        p95_s = _bucket_quantile(served, 0.95)
        if len(waits_s) > 0.05 * served[-1][1]:
            p95_s += in_line_s
        return p95_s * 1000.0

    def _slow_share(self, tick: _Tick, failed: int) -> float:
        served = tick.ttft[-1][1] if tick.ttft else 0.0
        slow = served - _up_to(tick.ttft, self.target_s)
        slow += sum(wait_s > self.target_s for wait_s in tick.waits_s)
        all_of_them = served + failed
        return min((slow + failed) / all_of_them, 1.0) if all_of_them else 0.0


class CapacityMeter:
    """What one replica does, from the rates that engines measure of themselves.

    The decode rate counts where all slots were taken and requests waited: there it is the most
    that the replica can do. Until that was seen, `expected` is believed; None knows nothing.
    """

    def __init__(self, expected: Capacity | None = None) -> None:
        self._expected = expected
        self._prefill = self._decode = self._slots = 0.0

    def add(self, replicas: Sequence[ReplicaFigures]) -> None:
        """The figures of one tick."""
        prefill = [one.prefill_tokens_per_s for one in replicas if one.prefill_tokens_per_s > 0]
        full = [
            one.decode_tokens_per_s
            for one in replicas
            if one.running >= one.slots > 0 and one.waiting > 0 and one.decode_tokens_per_s > 0
        ]
        self._slots = max([one.slots for one in replicas], default=self._slots)
        self._prefill = _smooth(self._prefill, prefill)
        self._decode = _smooth(self._decode, full)

    @property
    def capacity(self) -> Capacity | None:
        """Rounded, so that it changes when something has changed."""
        if not (self._prefill and self._decode and self._slots):
            return self._expected
        return Capacity(
            prefill_tokens_per_s=_rounded(self._prefill),
            output_tokens_per_s=_rounded(self._decode),
            slots=int(self._slots),
        )


class ColdStarts:
    """How long replicas take from their start to their first request; the longest of the last."""

    def __init__(self, expected_s: float) -> None:
        self._expected_s = expected_s
        self._since_s: dict[str, float] = {}
        self._took_s: deque[float] = deque(maxlen=STARTS_KEPT)

    @property
    def seconds(self) -> float:
        return round(max(self._took_s, default=self._expected_s), 1)

    def see(self, starting: Sequence[str], serving: Sequence[str], now_s: float) -> None:
        """Names of replicas that are not served to yet, and of those that are."""
        for name in serving:
            if name in self._since_s:
                self._took_s.append(now_s - self._since_s.pop(name))
        kept = {name: self._since_s.get(name, now_s) for name in starting[:STARTS_FOLLOWED_MAX]}
        self._since_s = kept


_BORN = ReplicaFigures(
    started_s=0.0,
    slots=0.0,
    running=0.0,
    waiting=0.0,
    queue_delay_s=0.0,
    prefill_tokens_per_s=0.0,
    decode_tokens_per_s=0.0,
    finished=0.0,
    prompt_tokens=0.0,
    cached_tokens=0.0,
    output_tokens=0.0,
    ttft=(),
)


def _busy(before: ReplicaFigures, now: ReplicaFigures) -> float:
    """Seconds of work, by what the engine says that a token costs. Counted when a request ends."""
    computed = now.prompt_tokens - before.prompt_tokens - (now.cached_tokens - before.cached_tokens)
    seconds = computed / now.prefill_tokens_per_s if now.prefill_tokens_per_s else 0.0
    if now.decode_tokens_per_s:
        seconds += (now.output_tokens - before.output_tokens) / now.decode_tokens_per_s
    return seconds


def _idle_ms(uncached: float | None, rates: Sequence[float]) -> float | None:
    """A mean prompt's time on an idle replica: below the p95 of all prompts, never above it."""
    known = [rate for rate in rates if rate > 0]
    if not uncached or not known:
        return None
    return uncached / (sum(known) / len(known)) * 1000.0


def _new(before: Buckets, now: Buckets) -> Buckets:
    counts = [count for _, count in before] or [0.0] * len(now)
    return [(bound, count - old) for (bound, count), old in zip(now, counts, strict=True)]


def _added(parts: Sequence[Buckets]) -> Buckets:
    """The sum of histograms with the same bounds."""
    filled = [part for part in parts if part]
    return [(same[0][0], sum(count for _, count in same)) for same in zip(*filled, strict=True)]


def _up_to(buckets: Buckets, value: float) -> float:
    """How many are at or below `value`, evenly spread inside a bucket."""
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if value < bound:
            share = 0.0 if bound == math.inf else (value - low) / (bound - low)
            return below + share * (count - below)
        low, below = bound, count
    return below


def _bucket_quantile(buckets: Buckets, q: float) -> float:
    """As Prometheus does it; beyond the last finite bound that bound is given."""
    rank = q * buckets[-1][1]
    pairs = itertools.pairwise([(0.0, 0.0), *buckets])
    for (low, below), (bound, count) in pairs:
        if count >= rank and count > below:
            return (
                low if bound == math.inf else low + (bound - low) * (rank - below) / (count - below)
            )
    return buckets[-1][0]


def _smooth(old: float, values: Sequence[float]) -> float:
    if not values:
        return old
    mean = sum(values) / len(values)
    return old + SMOOTHING * (mean - old) if old else mean


def _rounded(value: float) -> float:
    """To two digits."""
    return float(f"{value:.2g}")
