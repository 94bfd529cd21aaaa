"""How many replicas, and why: one pure function for every policy.

Refuses to act on doubt: with missing, NaN, stale or time-travelling signals the answer is HOLD, so
that an outage of the metrics never scales a region down. Refuses to scale outside min..max, and to
scale down while replicas are still starting. It never touches a driver; the caller keeps the
returned state only after the driver did what was decided.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from bul.scaling.bounds import Bounds
from bul.scaling.decision import Decision, Direction
from bul.scaling.rules import Want
from bul.scaling.signals import Signals, doubt

__all__ = ["Policy", "decide"]

State = TypeVar("State")
DOWN_NEEDS = ("requests_per_second",)


class Policy(Protocol[State]):
    """A rule: what it needs to see, and what it then wants. Pure; `bounds` are part of it."""

    @property
    def bounds(self) -> Bounds: ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Signals` without which it must not move."""
        ...

    def desired(self, state: State, signals: Signals, now_s: float) -> tuple[Want, State]: ...


def decide(
    policy: Policy[State], state: State, signals: Signals | None, now_s: float
) -> tuple[Decision, State]:
    """What to do now. Returns the state to keep once the driver has done it."""
    why_not = doubt(signals, now_s, policy.bounds.stale_s, policy.needs)
    if signals is None or why_not:
        # No number is known, so none is given: 0 here means "whatever there is".
        current = 0 if signals is None else signals.replicas_ready + signals.replicas_pending
        return Decision(direction=Direction.HOLD, replicas=current, reason=why_not), state
    want, new_state = policy.desired(state, signals, now_s)
    decision = _within(policy.bounds, want, signals)
    if decision.direction is Direction.DOWN and not policy.needs:
        # A rule that looks at nothing may start replicas blindly, but not stop any.
        why_not = doubt(signals, now_s, policy.bounds.stale_s, DOWN_NEEDS)
        if why_not:
            current = signals.replicas_ready + signals.replicas_pending
            return Decision(direction=Direction.HOLD, replicas=current, reason=why_not), state
    return decision, new_state


def _within(bounds: Bounds, want: Want, signals: Signals) -> Decision:
    current = signals.replicas_ready + signals.replicas_pending
    replicas = min(max(want.replicas, bounds.min_replicas), bounds.max_replicas)
    reason = want.reason
    if replicas != want.replicas:
        limit = "min_replicas" if replicas > want.replicas else "max_replicas"
        reason += f"; held at {limit}={replicas}, wanted {want.replicas}"
    if replicas > current:
        direction = Direction.UP
    elif replicas < current and signals.replicas_pending and current <= bounds.max_replicas:
        direction, replicas = Direction.HOLD, current
        reason += f"; {signals.replicas_pending} still starting, no scale-down meanwhile"
    else:
        direction = Direction.DOWN if replicas < current else Direction.HOLD
    return Decision(direction=direction, replicas=replicas, reason=reason, alert=want.alert)
