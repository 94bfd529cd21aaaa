"""The published rules, for comparison: guide, hpa, kpa, ray, keda, fixed.

Each is a frozen policy with one pure method, `desired(state, signals, now_s)`; clamping to
min..max, distrust of bad data and the wording of a hold are `decide.py`'s. Constants are the
published defaults (sources at each class); fields are what its users tune.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import msgspec

from bul.scaling.bounds import Bounds
from bul.scaling.signals import Signals

__all__ = [
    "Fixed",
    "Guide",
    "Hpa",
    "Keda",
    "Kpa",
    "Ray",
    "RuleState",
    "Want",
    "falling_maxima",
    "should_scale_up",
]


class Want(msgspec.Struct, frozen=True, gc=False):
    """How many replicas a rule wants, before any clamp, and why."""

    replicas: int
    reason: str
    alert: str = ""


class RuleState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a rule remembers between ticks. Values are replaced, never changed.

    history: (time, recommendation) pairs, newest last, bounded by the rule's own window.
    """

    last_up_s: float = -math.inf
    last_down_s: float = -math.inf
    panic_until_s: float = -math.inf
    panic_replicas: int = 0
    since_s: float = math.nan
    history: tuple[tuple[float, float], ...] = ()


def should_scale_up(
    metrics: Mapping[str, float], *, requests_per_second_threshold: float = 1000.0
) -> bool:
    """The guide's rule over its seven metrics; the threshold was a free name there."""
    return (
        metrics["requests_per_second"] > requests_per_second_threshold
        or metrics["p95_latency"] > 500
        or metrics["cpu_utilization"] > 0.8
        or metrics["error_rate"] > 0.01
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Guide:
    """`IntelligentAutoScaler` to the letter: one step, utilisation and p95 thresholds.

    Its trap (kept): an engine is busy with a single request, so utilisation sits near 1 and the
    way down is hardly ever open.
    """

    name: ClassVar[str] = "guide"
    needs: ClassVar[tuple[str, ...]] = ("ttft_p95_ms", "utilization")
    bounds: Bounds = Bounds()
    target_latency_p95: float = 500.0
    scale_up_threshold: float = 0.8
    scale_down_threshold: float = 0.3
    scale_up_cooldown: float = 0.0
    scale_down_cooldown: float = 0.0

    def desired(self, state: RuleState, signals: Signals, now_s: float) -> tuple[Want, RuleState]:
        current = signals.replicas_ready + signals.replicas_pending
        p95, busy = signals.ttft_p95_ms or 0.0, signals.utilization or 0.0
        if p95 > self.target_latency_p95 or busy > self.scale_up_threshold:
            if now_s - state.last_up_s < self.scale_up_cooldown:
                return Want(current, "cooling down after a scale-up"), state
            why = f"p95 {p95:.0f} ms, utilisation {busy:.2f}: over a threshold"
            return Want(current + 1, why), msgspec.structs.replace(state, last_up_s=now_s)
        if busy < self.scale_down_threshold and p95 < self.target_latency_p95 * 0.5:
            if now_s - max(state.last_down_s, state.last_up_s) < self.scale_down_cooldown:
                return Want(current, "cooling down before a scale-down"), state
            why = f"p95 {p95:.0f} ms, utilisation {busy:.2f}: under both thresholds"
            return Want(current - 1, why), msgspec.structs.replace(state, last_down_s=now_s)
        return Want(current, "between the thresholds"), state


def falling_maxima(
    maxima: tuple[tuple[float, float], ...], value: float, now_s: float, window_s: float
) -> tuple[tuple[float, float], ...]:
    """(time, value) of what may yet be the highest of the last `window_s`, with `value` added; the
    first is the highest now.
    """
    oldest_s = now_s - window_s
    return (*[pair for pair in maxima if pair[0] > oldest_s and pair[1] > value], (now_s, value))


def _stabilised(
    state: RuleState, current: int, raw: int, now_s: float, stabilisation_s: float, why: str
) -> tuple[Want, RuleState]:
    """The HPA's default behaviour: up at most max(+4, x2), down to the highest wish of late."""
    raw = min(raw, max(current + 4, 2 * current))
    history = falling_maxima(state.history, float(raw), now_s, stabilisation_s)
    wanted = raw if raw >= current else min(current, int(history[0][1]))
    return Want(wanted, why), RuleState(since_s=state.since_s, history=history)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Hpa:
    """Kubernetes HPA v2 with its default behaviour, on in-flight requests per replica.

    desired = ceil(ready x usage / target), tolerance 0.1; up at most max(+4, x2) per 15 s; down
    to the highest recommendation of the last 300 s. (kubernetes.io, HorizontalPodAutoscaler.)
    """

    name: ClassVar[str] = "hpa"
    needs: ClassVar[tuple[str, ...]] = ("in_flight",)
    bounds: Bounds = Bounds()
    target: float = 8.0
    tolerance: float = 0.1
    stabilisation_s: float = 300.0

    def desired(self, state: RuleState, signals: Signals, now_s: float) -> tuple[Want, RuleState]:
        ready = max(signals.replicas_ready, 1)
        current = signals.replicas_ready + signals.replicas_pending
        ratio = (signals.in_flight or 0.0) / ready / self.target
        raw = current if abs(ratio - 1.0) <= self.tolerance else math.ceil(ready * ratio)
        if raw > current:
            # Not-ready pods count as idle on the way up; no change if that flips the direction.
            damped = (signals.in_flight or 0.0) / current / self.target
            raw = math.ceil(current * damped) if damped > 1.0 + self.tolerance else current
        why = f"{signals.in_flight:.1f} in flight for a target of {self.target:g} each"
        return _stabilised(state, current, raw, now_s, self.stabilisation_s, why)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kpa:
    """Knative: stable window 60 s, panic window 6 s entered at 2x, never down in panic.

    Concurrency target x 70 % utilisation; rates x1000 up, /2 down a tick. (knative serving,
    pkg/autoscaler/scaling.) The windows are means over the samples that fall into them.
    """

    name: ClassVar[str] = "kpa"
    needs: ClassVar[tuple[str, ...]] = ("in_flight",)
    bounds: Bounds = Bounds()
    target: float = 8.0
    utilisation_target: float = 0.7
    stable_s: float = 60.0
    panic_s: float = 6.0
    panic_threshold: float = 2.0

    def desired(self, state: RuleState, signals: Signals, now_s: float) -> tuple[Want, RuleState]:
        ready = max(signals.replicas_ready, 1)
        current = signals.replicas_ready + signals.replicas_pending
        kept = tuple(pair for pair in state.history if pair[0] > now_s - self.stable_s)
        history = (*kept, (now_s, signals.in_flight or 0.0))
        per_replica = self.target * self.utilisation_target
        recent = [value for at_s, value in history if at_s > now_s - self.panic_s]
        stable = math.ceil(sum(v for _, v in history) / len(history) / per_replica)
        panic = math.ceil(sum(recent) / len(recent) / per_replica)
        until_s, floor = state.panic_until_s, state.panic_replicas
        if panic >= self.panic_threshold * ready:
            until_s, floor = now_s + self.stable_s, max(floor, panic)
        in_panic = now_s < until_s
        floor = max(floor, panic, current) if in_panic else 0
        wanted = floor if in_panic else max(stable, current // 2)
        why = f"{'panic' if in_panic else 'stable'}: {signals.in_flight:.1f} in flight"
        new = msgspec.structs.replace(
            state, history=history, panic_until_s=until_s, panic_replicas=floor
        )
        return Want(wanted, why), new


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ray:
    """Ray Serve: running x ongoing / (target x running) over a 30 s look-back, delays 30 / 600 s.

    A direction must persist for its whole delay before it is acted on (AutoscalingConfig).
    """

    name: ClassVar[str] = "ray"
    needs: ClassVar[tuple[str, ...]] = ("in_flight",)
    bounds: Bounds = Bounds()
    target: float = 2.0
    look_back_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0

    def desired(self, state: RuleState, signals: Signals, now_s: float) -> tuple[Want, RuleState]:
        current = signals.replicas_ready + signals.replicas_pending
        kept = tuple(pair for pair in state.history if pair[0] > now_s - self.look_back_s)
        history = (*kept, (now_s, signals.in_flight or 0.0))
        ongoing = sum(value for _, value in history) / len(history)
        raw = math.ceil(ongoing / self.target)
        why = f"{ongoing:.1f} ongoing for a target of {self.target:g} each"
        if raw == current:
            return Want(current, why), msgspec.structs.replace(
                state, history=history, since_s=math.nan, panic_replicas=0
            )
        direction = 1 if raw > current else -1
        since_s = state.since_s if state.panic_replicas == direction else now_s
        delay_s = self.upscale_delay_s if direction > 0 else self.downscale_delay_s
        due = now_s - since_s >= delay_s
        new = msgspec.structs.replace(
            state,
            history=history,
            since_s=math.nan if due else since_s,
            panic_replicas=0 if due else direction,
        )
        return Want(raw if due else current, why), new


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Keda:
    """KEDA over an HPA, as LLM users set it up: waiting requests per replica above `target`.

    AverageValue metric: desired = ceil(waiting / target), polled every 30 s, then the HPA's
    tolerance, rate limits and 300 s stabilisation. (keda.sh, ScaledObject.)
    """

    name: ClassVar[str] = "keda"
    needs: ClassVar[tuple[str, ...]] = ("waiting",)
    bounds: Bounds = Bounds()
    target: float = 5.0
    tolerance: float = 0.1
    stabilisation_s: float = 300.0
    poll_s: float = 30.0

    def desired(self, state: RuleState, signals: Signals, now_s: float) -> tuple[Want, RuleState]:
        current = signals.replicas_ready + signals.replicas_pending
        if not math.isnan(state.since_s) and now_s - state.since_s < self.poll_s:
            return Want(current, "between two polls"), state
        waiting = signals.waiting or 0.0
        ratio = waiting / max(current, 1) / self.target
        raw = current if abs(ratio - 1.0) <= self.tolerance else math.ceil(waiting / self.target)
        why = f"{waiting:.1f} waiting for a target of {self.target:g} each"
        polled = msgspec.structs.replace(state, since_s=now_s)
        return _stabilised(polled, current, raw, now_s, self.stabilisation_s, why)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """Always the same number; the rival to beat on quiet days."""

    name: ClassVar[str] = "fixed"
    needs: ClassVar[tuple[str, ...]] = ()
    bounds: Bounds = Bounds()
    replicas: int = 2

    def desired(self, state: RuleState, signals: Signals, now_s: float) -> tuple[Want, RuleState]:
        del signals, now_s
        return Want(self.replicas, "fixed"), state
