"""The `adaptive` policy: a forecast of work, a margin that learns, and a way down that waits.

Refuses to scale on busy-ness, to come down on one quiet minute, to learn from hours in which no
number of replicas could meet the target, and to trust a gap in its own data.

Each tick, in units of "one replica fully at work":

    work   = prefill_tokens/s / prefill_rate + requests/s * reply_tokens / output_rate
             half of it instead: its mean of 450 s times (under way now / mean of 450 s);
             what arrives beyond twice that mean counts in full
    mean   = EWMA(work, 20 s)                     what the next minutes look like
    noise2 = EWMA((work - mean)^2 / mean)         how far off that was, per unit of work:
             0.6 of the memory of 10 hours and 0.4 of that of 4 minutes
    spread = sqrt(noise2) * mean^0.15
    crest  = highest mean of the last 3 to 6 hours
    need   = 0.9 * mean + margin * spread                                      up to a margin of 10
             what the margin is above 10 counts 0.6 * spread + 0.1 * (crest - mean) instead
    wanted = ceil(the highest need of the last `hold_s`)

The reply length is learnt from finished requests, over two minutes; nothing is known of the
future. What is under way knows earlier that replies are long and that a queue stands, and as a
ratio to its own mean it needs no scale; it says at most "twice as much", or a queue that waits for
a cold start would be answered twice. Traffic is bursty for minutes and then calm again, which is
why the noise has two memories.
Errors of a forecast grow like a small power of the load (bursts of independent users even out), so
a percentage as headroom is too much at noon and too little at night. Memories, power, share, hold
and the first margin were searched on the first week of one production pool's rates, one seed, and
the first steps of the margin on two hours of other services; how much what is under way counts was
tried on that week (1 to 2 percent fewer hours) and on made spikes and steps; REPLY_S, USUAL_S and
the margin's gain stem from an earlier search on both weeks. What another pool needs differs; the
margin makes up for it.

The margin is learnt from the share of slow requests (`margin.py`). It stands still while even an
idle replica misses the target, and does not rise while the need is above `max_replicas`: what
cannot help need not be unlearnt.

Jumps to a multiple, again and again, are what takes a margin above 10: the noise is that of single
ticks, and small between them. A fleet that is to be there *before* the next jump is a share of the
last crest, and with the crest it goes when the jumps end. A bound on the margin (16 once) broke the
promise; without the crest the same spikes took 6 percent more hours. The 10, its two factors and
the square of the steps were tried on made spikes, steps and a wave (one seed, 8b at 120 s) and on
the two hours of other services; so were the first steps downwards.

Worked numbers: mean 4.2, noise2 0.09, margin 4: need = 3.8 + 4 * 0.3 * 1.24 = 5.3 replicas. With
margin 18 after a crest of 10.2: 3.8 + 10 * 0.37 + 8 * (0.6 * 0.37 + 0.1 * 6) = 14.1.

No season and no trend. Both were tried on that week: a trend of the last ten minutes in the
forecast cost 0.3 percent more replica-hours at the same violations; yesterday's work at the same
time of day correlates with today's by 0.13, and windows of ten minutes jump by 22 percent
(standard deviation), beside which the day's wave moves nothing within a cold start.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

import msgspec

from bul.errors import ConfigError
from bul.scaling.bounds import Bounds
from bul.scaling.margin import KNEE, MARGIN_MIN, SETTLE_S, Margin, follow, has_room
from bul.scaling.rules import Want, falling_maxima
from bul.scaling.signals import VALUE_MAX, Signals

__all__ = ["Adaptive", "AdaptiveState", "Capacity"]

WORK_S, REPLY_S, USUAL_S = 20.0, 120.0, 7_500.0
NOISE_S, NOISE_NOW_S, NOISE_NOW_SHARE = 36_000.0, 240.0, 0.4
NOISE2_FIRST, NOISE2_MIN = 0.3, 0.02
"""The first guess; and what is left of it when traffic is perfectly even, so that the margin keeps
something to work with."""
CROWDING_S, CROWDING_SHARE, CROWDING_MAX = 450.0, 0.5, 2.0
"""What is under way, as a witness of work: over which mean, how much it counts, and the most that
one crowded tick can say."""
SHARE, POWER = 0.9, 0.15
MARGIN_FIRST_MAX = 16.0
KNEE_SPREAD, KNEE_CREST = 0.6, 0.1
"""How a margin's part above KNEE counts."""
CREST_S = 10_800.0
"""The highest mean is remembered for one to two times this."""
GAIN_RECENT = 0.1
HOLD_BASE_S, HOLD_PER_COLD_START = 300.0, 3.0
SURPRISE_MAX = 30.0
GAP_S = 90.0
"""After this long without data the wait before a scale-down begins anew."""
SLACK = 0.05
"""A need of 5.05 is served by 5: rounding up there would cost a replica for one percent."""
HYSTERESIS = 0.3
"""A scale-down leaves this much of a replica free, or the next noise would take it back."""
WORK_MAX = 4.0
"""Work is believed up to this many times `max_replicas`: one mad sample must not stay for hours."""
CROWD_MAX = 10.0
"""A tick moves the margin by at most this many times what a usual tick would."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What one replica does, measured (`bul bench`). Rates alone, prompts or replies only.

    slots: sequences it decodes together. output_tokens_per_s: with all slots at work.
    """

    prefill_tokens_per_s: float
    output_tokens_per_s: float
    slots: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"capacity: {field.name} must be above 0, was {value}")


class Crest(NamedTuple):
    """The highest mean since `since_s`, and in the CREST_S before."""

    since_s: float = 0.0
    now: float = 0.0
    before: float = 0.0

    def with_mean(self, mean: float, now_s: float) -> Crest:
        """With one more; a clock that went back begins anew."""
        if 0.0 <= now_s - self.since_s < CREST_S:
            return self if mean <= self.now else self._replace(now=mean)
        return Crest(now_s, mean, self.now)


class AdaptiveState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the policy remembers. Values are replaced, never changed.

    peaks: (time, need), needs falling: the candidates for "highest of the last hold_s".
    """

    at_s: float = math.nan
    since_s: float = math.nan
    mean: float = 0.0
    noise2: float = NOISE2_FIRST
    noise2_now: float = NOISE2_FIRST
    output_tokens_per_s: float = 0.0
    requests_per_second: float = 0.0
    usual_per_second: float = 0.0
    work_lately: float = 0.0
    in_flight_lately: float = 0.0
    margin: Margin = Margin(value=math.nan)
    crest: Crest = Crest()
    peaks: tuple[tuple[float, float], ...] = ()
    last_up_s: float = -math.inf
    last_down_s: float = -math.inf


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Adaptive:
    """Holds the share of slow requests at `violation_max` with few replicas; the only knob.

    target_ms: what "slow" means; must be the target that `Signals.slow_share` counts against.
    capacity: of one replica; without it in-flight requests per slot stand for work.
    cold_start_s: from the decision to the first request served. The cooldowns are the guide's;
    0 leaves the pace to the hold; hold_base_s: its part that no cold start lengthens.
    work_memory_s: of the mean of the work. Raises ConfigError.
    """

    name: ClassVar[str] = "adaptive"
    bounds: Bounds = Bounds()
    violation_max: float = 0.01
    target_ms: float = 500.0
    capacity: Capacity | None = None
    slots: int = 8
    cold_start_s: float = 120.0
    scale_up_cooldown_s: float = 0.0
    scale_down_cooldown_s: float = 0.0
    hold_base_s: float = HOLD_BASE_S
    work_memory_s: float = WORK_S

    def __post_init__(self) -> None:
        if not 0.0 < self.violation_max < 1.0:
            raise ConfigError(f"violation_max must be in (0, 1), was {self.violation_max}")
        if not (math.isfinite(self.work_memory_s) and self.work_memory_s > 0):
            raise ConfigError(f"work_memory_s must be above 0, was {self.work_memory_s}")
        if not (math.isfinite(self.cold_start_s) and self.cold_start_s >= 0):
            raise ConfigError(f"cold_start_s must be at least 0, was {self.cold_start_s}")

    @property
    def needs(self) -> tuple[str, ...]:
        if self.capacity is None:
            return ("in_flight", "requests_per_second")
        return ("requests_per_second", "prefill_tokens_per_s", "output_tokens_per_s")

    @property
    def hold_s(self) -> float:
        """A scale-down needs this long without a need for more; longer where mistakes last."""
        return self.hold_base_s + HOLD_PER_COLD_START * self.cold_start_s

    @property
    def margin_start(self) -> float:
        """A first guess: what the tuning week wanted, within 5 % from 0.5 to 5 % of slow requests
        and for every cold start.
        """
        return min(4.9 * math.pow(0.01 / self.violation_max, 0.68), MARGIN_FIRST_MAX)

    def desired(
        self, state: AdaptiveState, signals: Signals, now_s: float
    ) -> tuple[Want, AdaptiveState]:
        current = signals.replicas_ready + signals.replicas_pending
        learnt = self._learn(state, signals, now_s)
        need = self._need(learnt)
        slots = self.capacity.slots if self.capacity else self.slots
        waiting = signals.waiting or 0.0
        if waiting > slots * max(signals.replicas_ready, 1) and not signals.replicas_pending:
            # The forecast was wrong and a queue stands: one replica more per full set of slots.
            need = max(need, current + min(waiting / slots, float(current)))
        peaks = falling_maxima(learnt.peaks, need, now_s, self.hold_s)
        replicas, why = self._pace(learnt, current, need, peaks[0][1], now_s)
        learnt = msgspec.structs.replace(
            learnt,
            peaks=peaks,
            last_up_s=now_s if replicas > current else learnt.last_up_s,
            last_down_s=now_s if replicas < current else learnt.last_down_s,
        )
        alert = self._infeasible(signals) or self._beyond(learnt)
        return Want(replicas, why, alert=alert), learnt

    def _pace(
        self, state: AdaptiveState, current: int, need: float, highest: float, now_s: float
    ) -> tuple[int, str]:
        """Up at once, down only to what would have carried every need of the last hold_s."""
        why = (
            f"work of {state.mean:.1f} replicas, need {need:.1f} "
            f"with margin {state.margin.value:.1f}, at most {highest:.1f} in {self.hold_s:.0f} s"
        )
        upwards = max(math.ceil(need - SLACK), 1)
        if upwards > current:
            if now_s - state.last_up_s < self.scale_up_cooldown_s:
                return current, f"cooling down after a scale-up; {why}"
            return upwards, why
        downwards = max(math.ceil(highest - SLACK + HYSTERESIS), 1)
        if downwards < current:
            if now_s - max(state.last_down_s, state.last_up_s) < self.scale_down_cooldown_s:
                return current, f"cooling down before a scale-down; {why}"
            return downwards, why
        return current, why

    def _infeasible(self, signals: Signals) -> str:
        idle_ms = signals.ttft_idle_ms
        if idle_ms is None or not idle_ms > self.target_ms:
            return ""
        return (
            f"one idle replica already needs {idle_ms:.0f} ms of the {self.target_ms:.0f} ms "
            "asked: more replicas will not help; shorten prompts or raise the target"
        )

    def _beyond(self, state: AdaptiveState) -> str:
        usual = state.margin.floor_usual
        if usual <= self.violation_max or state.at_s - state.since_s <= SETTLE_S:
            return ""
        return (
            f"{usual:.1%} of requests miss the {self.target_ms:.0f} ms asked even with replicas to "
            f"spare, and {self.violation_max:.1%} may: more replicas will hardly help; shorten "
            "prompts or raise the target"
        )

    def _need(self, state: AdaptiveState) -> float:
        if state.mean <= 0.0:
            return 0.0
        margin = max(state.margin.value + GAIN_RECENT * state.margin.recent, MARGIN_MIN)
        noise2 = state.noise2 + NOISE_NOW_SHARE * (state.noise2_now - state.noise2)
        spread = math.sqrt(max(noise2, NOISE2_MIN)) * math.pow(state.mean, POWER)
        need = SHARE * state.mean + min(margin, KNEE) * spread
        if margin <= KNEE:
            return need
        fall = max(state.crest.now, state.crest.before) - state.mean
        return need + (margin - KNEE) * (KNEE_SPREAD * spread + KNEE_CREST * max(fall, 0.0))

    def _work(self, output: float, requests: float, signals: Signals) -> float:
        """What arrives, in replicas; output, requests: tokens/s and replies/s of late."""
        if self.capacity is None:
            return min((signals.in_flight or 0.0) / self.slots, WORK_MAX * self.bounds.max_replicas)
        rate = signals.requests_per_second or 0.0
        reply_tokens = output / max(requests, 1e-9)
        prefill_tokens = signals.prefill_tokens_per_s or 0.0
        prefill = prefill_tokens / self.capacity.prefill_tokens_per_s
        decode = rate * reply_tokens / self.capacity.output_tokens_per_s
        return min(prefill + decode, WORK_MAX * self.bounds.max_replicas)

    def _learn(self, state: AdaptiveState, signals: Signals, now_s: float) -> AdaptiveState:
        rate = signals.requests_per_second or 0.0
        output = signals.output_tokens_per_s or 0.0
        if self.capacity is not None:
            most = WORK_MAX * self.bounds.max_replicas * self.capacity.output_tokens_per_s
            output = min(output, most)
        if math.isnan(state.at_s):
            return AdaptiveState(
                at_s=now_s,
                since_s=now_s,
                mean=(arriving := self._work(output, rate, signals)),
                work_lately=arriving,
                in_flight_lately=_in_flight(signals) or 0.0,
                output_tokens_per_s=output,
                requests_per_second=rate,
                usual_per_second=rate,
                margin=Margin(value=self.margin_start),
                # Somebody wanted the fleet that is there: it is kept for a hold, too.
                peaks=((now_s, float(signals.replicas_ready + signals.replicas_pending)),),
            )
        elapsed_s = now_s - state.at_s
        peaks = state.peaks
        if not 0.0 <= elapsed_s <= GAP_S:
            peaks = tuple((now_s, need) for _, need in peaks[:1])
            elapsed_s = min(max(elapsed_s, 0.0), GAP_S)
        output = follow(state.output_tokens_per_s, output, elapsed_s, REPLY_S)
        requests = follow(state.requests_per_second, rate, elapsed_s, REPLY_S)
        arriving = self._work(output, requests, signals)
        lately = follow(state.work_lately, arriving, elapsed_s, CROWDING_S)
        in_flight_lately, work = state.in_flight_lately, arriving
        if (in_flight := _in_flight(signals)) is not None:
            in_flight_lately = follow(in_flight_lately, in_flight, elapsed_s, CROWDING_S)
            crowding = min(in_flight / max(in_flight_lately, 1e-9), CROWDING_MAX)
            usual = min(arriving, CROWDING_MAX * lately)  # a jump beyond it counts in full
            work += CROWDING_SHARE * (crowding * lately - usual)
        surprise = min((work - state.mean) ** 2 / max(state.mean, 0.1), SURPRISE_MAX)
        margin = self._margin(state, signals, rate, arriving, elapsed_s)
        mean = follow(state.mean, work, elapsed_s, self.work_memory_s)
        return AdaptiveState(
            at_s=now_s,
            since_s=state.since_s,
            mean=mean,
            noise2=follow(state.noise2, surprise, elapsed_s, NOISE_S),
            noise2_now=follow(state.noise2_now, surprise, elapsed_s, NOISE_NOW_S),
            output_tokens_per_s=output,
            requests_per_second=requests,
            usual_per_second=follow(state.usual_per_second, rate, elapsed_s, USUAL_S),
            work_lately=lately,
            in_flight_lately=in_flight_lately,
            margin=margin,
            crest=state.crest.with_mean(mean, now_s),
            peaks=peaks,
            last_up_s=min(state.last_up_s, now_s),  # a clock that went back must not hold for long
            last_down_s=min(state.last_down_s, now_s),
        )

    def _margin(
        self, state: AdaptiveState, signals: Signals, rate: float, arriving: float, elapsed_s: float
    ) -> Margin:
        slow = signals.slow_share
        if slow is None or not 0.0 <= slow <= 1.0 or self._infeasible(signals):
            return state.margin
        slots = self.capacity.slots if self.capacity else self.slots
        # A queue of a time before shows in what is under way, not in what arrives.
        work = max(arriving, state.mean, (_in_flight(signals) or 0.0) / slots)
        return state.margin.after(
            slow,
            self.violation_max,
            crowd=min(rate / max(state.usual_per_second, 1e-9), CROWD_MAX),
            room=has_room(work, state.noise2, signals.replicas_ready),
            may_rise=self._need(state) <= self.bounds.max_replicas,
            age_s=max(state.at_s - state.since_s, 0.0),
            elapsed_s=elapsed_s,
        )


def _in_flight(signals: Signals) -> float | None:
    """None: not known, or not to be believed."""
    value = signals.in_flight
    return value if value is not None and 0.0 <= value <= VALUE_MAX else None
