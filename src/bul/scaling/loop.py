"""`IntelligentAutoScaler`: asks, decides through `decide.py`, lets the driver act, writes it down.

Refuses to judge (`decide.py` does), to count a replica that the driver does not show, to ask a
driver for something new while it still works on the last wish, and to act without the lease.

The driver's count is the truth at every tick and a wish is a number, not a step. So a driver that
fails, hangs or does half of it cannot lead to a double scale: the next decision starts from what
is there. A policy's state is kept only once the driver did what was decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from bul.clock import Clock, SystemClock
from bul.scaling.bounds import Bounds
from bul.scaling.decide import Policy, decide
from bul.scaling.decision import Decision, Direction
from bul.scaling.drivers.contract import Driver, Replica
from bul.scaling.history import History, Record
from bul.scaling.lease import Lease
from bul.scaling.registry import make_policy, make_state
from bul.scaling.signals import Signals

__all__ = ["IntelligentAutoScaler", "SignalSource"]

CALL_DEADLINE_S = 10.0
ACT_DEADLINE_S = 60.0
INTERVAL_S = 15.0
STALE_S = 60.0
FINDING_MAX = 500


def _always(_: str) -> bool:
    return True


class SignalSource(Protocol):
    """Where a region's measurements come from."""

    async def signals(self) -> Signals | None:
        """The last window; None is "no data". Replica counts in it are ignored."""
        ...


class IntelligentAutoScaler:
    """The guide's scaler over a driver; its attributes may be changed while it runs.

    policy: a name of `registry.POLICY_NAMES`; settings: that policy's own. The guide's attributes
    become the settings of the policies that have them. advisory: decide and record, never act.
    on_record: called with every record, for events and metrics. routed: whether the router sends
    to the replica at that URL; a ready one that it does not counts as pending. stale_s: older
    signals move nothing. `finding` says what is wrong with the driver at present, or "";
    `paused`, while not "", is why nothing may be scaled now.
    """

    def __init__(  # every argument is a collaborator or a limit
        self,
        driver: Driver,
        source: SignalSource,
        *,
        policy: str = "adaptive",
        settings: Mapping[str, object] | None = None,
        clock: Clock | None = None,
        history: History | None = None,
        lease: Lease | None = None,
        advisory: bool = False,
        act_deadline_s: float = ACT_DEADLINE_S,
        call_deadline_s: float = CALL_DEADLINE_S,
        on_record: Callable[[Record], None] | None = None,
        routed: Callable[[str], bool] = _always,
        stale_s: float = STALE_S,
    ) -> None:
        self.min_replicas = 2
        self.max_replicas = 10
        self.target_latency_p95 = 500.0
        self.scale_up_threshold = 0.8
        self.scale_down_threshold = 0.3
        self.current_replicas = 0
        self.policy = policy
        self.settings = dict(settings or {})
        self.history = history or History()
        self.finding = ""
        self.paused = ""
        self.advisory = advisory
        self._driver = driver
        self._source = source
        self._clock = clock or SystemClock()
        self._lease = lease
        self._act_deadline_s = act_deadline_s
        self._call_deadline_s = call_deadline_s
        self._on_record = on_record
        self._routed = routed
        self._stale_s = stale_s
        self._state: Any = make_state(policy)
        self._made_for: object = None
        self._made: Policy[Any] = self._policy()
        self._acting: asyncio.Task[None] | None = None
        self._acting_since_s = 0.0
        self._acting_state: Any = None
        self._turn = asyncio.Lock()

    @property
    def leads(self) -> bool:
        """Whether this loop is the one that may scale now; takes a free lease."""
        return self._lease is None or self._lease.held()

    async def check_and_scale(self) -> Decision:
        """One tick. Does not raise for what the driver or the metrics do."""
        async with self._turn:
            counts, why_not = await self._counts()
            if counts is None:
                return self._record(self._hold(why_not), None)
            ready, pending = counts
            signals = await self._signals(ready, pending)
            decision, state = decide(self._policy(), self._state, signals, self._clock.now_s())
            if decision.direction is Direction.HOLD:
                self._state = state
                return self._record(decision, signals)
            return await self._act(decision, signals, state)

    async def scale_up(self) -> Decision:
        """One replica more by hand, within the limits."""
        return await self._by_hand(lambda current: current + 1)

    async def scale_down(self) -> Decision:
        """One replica less by hand, within the limits."""
        return await self._by_hand(lambda current: current - 1)

    async def scale_to(self, replicas: int) -> Decision:
        """So many by hand, within the limits; the policy goes on from there at the next tick."""
        return await self._by_hand(lambda _: replicas)

    async def run(self, interval_s: float = INTERVAL_S) -> None:
        """Tick until cancelled."""
        while True:
            await self.check_and_scale()
            await asyncio.sleep(interval_s)

    async def close(self) -> None:
        """Give up the lease and what is still being waited for. The driver stays the caller's."""
        if self._acting is not None:
            self._acting.cancel()
            await asyncio.wait({self._acting}, timeout=self._call_deadline_s)
            self._acting = None
        if self._lease is not None:
            self._lease.release()
        self.history.close()

    async def _by_hand(self, wish: Callable[[int], int]) -> Decision:
        async with self._turn:
            counts, why_not = await self._counts()
            if counts is None:
                return self._record(self._hold(why_not), None)
            current, wanted = sum(counts), wish(sum(counts))
            if not self.min_replicas <= wanted <= self.max_replicas:
                limits = f"{self.min_replicas}..{self.max_replicas}"
                return self._record(self._hold(f"by hand, but {wanted} is outside {limits}"), None)
            if wanted == current:
                return self._record(self._hold(f"by hand, and {current} are there"), None)
            direction = Direction.UP if wanted > current else Direction.DOWN
            decision = Decision(direction=direction, replicas=wanted, reason="by hand")
            return await self._act(decision, None, self._state)

    async def _counts(self) -> tuple[tuple[int, int] | None, str]:
        """(ready, pending) as the driver shows them, or why this tick must not act."""
        if not self.leads:
            return None, "another loop leads this region"
        if self.paused:
            return None, self.paused
        if self._acting is not None and not self._acting.done():
            waited_s = self._clock.now_s() - self._acting_since_s
            self.finding = f"the driver has worked on the last wish for {waited_s:.0f} s"
            return None, self.finding
        late = self._late_end()
        try:
            async with asyncio.timeout(self._call_deadline_s):
                replicas = await self._driver.replicas()
        except Exception as error:  # noqa: BLE001 - a driver's fault must not end the loop
            self.finding = f"the driver does not list its replicas: {_said(error)}"
            return None, self.finding
        states = [replica.state for replica in replicas]
        there = states.count("ready") + states.count("pending")
        ready = sum(one.state == "ready" and self._routed(one.url) for one in replicas)
        self.current_replicas = there
        self.finding = late or _failures(replicas)
        return (ready, there - ready), ""

    def _late_end(self) -> str:
        """What a wish that outlived its tick came to; "" when it was done, or there was none."""
        task, self._acting = self._acting, None
        if task is None:
            return ""
        if task.cancelled() or task.exception() is not None:
            return f"the driver failed: {_said(task)}"
        self._state = self._acting_state
        return ""

    async def _signals(self, ready: int, pending: int) -> Signals | None:
        try:
            async with asyncio.timeout(self._call_deadline_s):
                signals = await self._source.signals()
        except Exception:  # noqa: BLE001 - an outage of the metrics is "no data"
            signals = None
        if signals is None:
            return None
        return msgspec.structs.replace(signals, replicas_ready=ready, replicas_pending=pending)

    async def _act(self, decision: Decision, signals: Signals | None, state: object) -> Decision:
        if self.advisory:
            self._state = state
            return self._record(decision, signals)
        self._acting_since_s, self._acting_state = self._clock.now_s(), state
        # Not awaited with a timeout: cancelling could leave a driver between two states.
        task = asyncio.ensure_future(self._driver.scale_to(decision.replicas))
        self._acting = task
        await asyncio.wait({task}, timeout=self._act_deadline_s)
        if not task.done():
            self.finding = f"the driver did not finish within {self._act_deadline_s:g} s"
            return self._record(decision, signals)
        self._acting = None
        if task.cancelled() or task.exception() is not None:
            self.finding = f"the driver failed: {_said(task)}"
            return self._record(decision, signals)
        self._state = state
        before = self.current_replicas
        counts, _ = await self._counts()
        if counts is not None and sum(counts) != decision.replicas and not self.finding:
            self.finding = f"{decision.replicas} were asked for, {sum(counts)} are there"
        return self._record(decision, signals, acted=True, before=before)

    def _policy(self) -> Policy[Any]:
        """The policy for the attributes as they are now."""
        bounds = Bounds(
            min_replicas=self.min_replicas, max_replicas=self.max_replicas, stale_s=self._stale_s
        )
        own: dict[str, object] = {}
        if self.policy == "guide":
            own = {
                "target_latency_p95": self.target_latency_p95,
                "scale_up_threshold": self.scale_up_threshold,
                "scale_down_threshold": self.scale_down_threshold,
            }
        elif self.policy == "adaptive":
            own = {"target_ms": self.target_latency_p95}
        wanted = (self.policy, bounds, own | self.settings)
        if wanted != self._made_for:
            self._made = make_policy(self.policy, bounds=bounds, **(own | self.settings))
            self._made_for = wanted
        return self._made

    def _hold(self, reason: str) -> Decision:
        return Decision(direction=Direction.HOLD, replicas=self.current_replicas, reason=reason)

    def _record(
        self,
        decision: Decision,
        signals: Signals | None,
        *,
        acted: bool = False,
        before: int | None = None,
    ) -> Decision:
        record = Record(
            wall_s=self._clock.wall_s(),
            policy=self.policy,
            decision=decision,
            replicas_before=self.current_replicas if before is None else before,
            acted=acted,
            advisory=self.advisory,
            finding=self.finding,
            signals=signals,
        )
        self.history.add(record)
        if self._on_record is not None:
            self._on_record(record)
        return decision


def _failures(replicas: Sequence[Replica]) -> str:
    failed = [one for one in replicas if one.state == "failed"]
    return "; ".join(f"{one.name}: {one.failure or 'cannot live'}" for one in failed)[:FINDING_MAX]


def _said(error: BaseException | asyncio.Task[None]) -> str:
    if isinstance(error, asyncio.Task):
        failed = None if error.cancelled() else error.exception()
        error = failed or asyncio.CancelledError()
    return str(error) or type(error).__name__
