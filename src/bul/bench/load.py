"""Runs a workload against a target: in a closed loop, or open at its own times.

Refuses to wait with the clock stopped: open-loop latency counts from the moment a request was
due, so a service that stalls is charged for everyone who would have asked meanwhile (Gil Tene's
"coordinated omission"). Bounded in requests, seconds and requests in flight.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

from bul.bench.client import Client, Sample, now_s
from bul.bench.workload import Conversation, Turn
from bul.errors import ConfigError

__all__ = ["DURATION_S_MAX", "REQUESTS_MAX", "Limits", "Run", "run_load"]

REQUESTS_MAX = 1_000_000
DURATION_S_MAX = 86_400.0
CONCURRENCY_MAX = 10_000
SPIN_S = 0.0005
PAUSE_AFTER_ERROR_S = 0.05
"""A user of the closed loop waits so long after an error, or a dead server would spin us."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When a run ends. concurrency: users of a closed loop; 0 is an open loop.

    drain_s: how long started requests may go on after `duration_s`; what is left is cancelled
    and counted as `unfinished`. warmup: first requests that no figure counts.
    """

    requests: int = REQUESTS_MAX
    duration_s: float = DURATION_S_MAX
    concurrency: int = 0
    in_flight_max: int = CONCURRENCY_MAX
    drain_s: float = 60.0
    warmup: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("requests", self.requests, 1, REQUESTS_MAX),
            ("duration", self.duration_s, 0.001, DURATION_S_MAX),
            ("concurrency", self.concurrency, 0, CONCURRENCY_MAX),
            ("in_flight_max", self.in_flight_max, 1, CONCURRENCY_MAX),
            ("warmup", self.warmup, 0, REQUESTS_MAX),
            ("drain", self.drain_s, 0, 3600),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} must be in [{low:g}, {high:g}], was {value:g}")


@dataclasses.dataclass(kw_only=True, slots=True)
class Run:
    """What happened. Samples in the order of sending, warm-up included; cpu_s: of this process."""

    samples: list[Sample]
    started_s: float
    ended_s: float = 0.0
    cpu_s: float = 0.0
    warmup: int = 0
    interrupted: bool = False
    cut_off: list[Sample] = dataclasses.field(default_factory=list)
    """What was under way when `stop` was set; in no figure."""

    @property
    def measured(self) -> list[Sample]:
        """Without the warm-up."""
        return [sample for sample in self.samples if sample.number >= self.warmup]


async def run_load(
    client: Client,
    conversations: Iterator[Conversation],
    limits: Limits,
    *,
    stop: asyncio.Event | None = None,
    on_done: Callable[[Sample], None] | None = None,
) -> Run:
    """Play the conversations until they, a limit, or `stop` ends them. Raises only our mistakes."""
    run = Run(samples=[], started_s=now_s(), warmup=limits.warmup)
    player = _Player(client, limits, run, on_done)
    cpu_s = time.process_time()
    playing = asyncio.create_task(player.play(conversations))
    stopping = asyncio.create_task(stop.wait()) if stop is not None else None
    waiting = {playing} if stopping is None else {playing, stopping}
    try:
        await asyncio.wait(waiting, timeout=limits.duration_s, return_when=asyncio.FIRST_COMPLETED)
        run.interrupted = stop is not None and stop.is_set()
        player.stopping = True
        if not run.interrupted:
            await asyncio.wait(waiting, timeout=limits.drain_s, return_when="FIRST_COMPLETED")
            run.interrupted = stop is not None and stop.is_set()
    finally:
        await _cancelled(playing, stopping)
        player.give_up()
    run.ended_s = now_s()
    run.cpu_s = time.process_time() - cpu_s
    if run.interrupted:  # what Ctrl-C cut off says nothing about the service
        run.cut_off = [sample for sample in run.samples if sample.error == "unfinished"]
        run.samples = [sample for sample in run.samples if sample.error != "unfinished"]
    return run


async def _cancelled(playing: asyncio.Task[None], stopping: asyncio.Task[bool] | None) -> None:
    if stopping is not None:
        stopping.cancel()
    if not playing.done():
        playing.cancel()
        await asyncio.wait({playing})
    if not playing.cancelled():
        playing.result()


class _Player:
    def __init__(
        self, client: Client, limits: Limits, run: Run, on_done: Callable[[Sample], None] | None
    ) -> None:
        self._client = client
        self._limits = limits
        self._run = run
        self._on_done = on_done
        self._in_flight: set[int] = set()
        self._numbers = itertools.count()
        self._left = limits.requests + limits.warmup
        self.stopping = False

    async def play(self, conversations: Iterator[Conversation]) -> None:
        async with asyncio.TaskGroup() as group:
            if self._limits.concurrency:
                for _ in range(self._limits.concurrency):
                    group.create_task(self._user(conversations))
            else:
                await self._send_when_due(group, conversations)

    async def _user(self, conversations: Iterator[Conversation]) -> None:
        while self._open():
            conversation = next(conversations, None)
            if conversation is None:
                return
            if not await self._converse(conversation, now_s()):
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    async def _send_when_due(
        self, group: asyncio.TaskGroup, conversations: Iterator[Conversation]
    ) -> None:
        while self._open():
            conversation = next(conversations, None)
            if conversation is None:
                return
            due_s = self._run.started_s + conversation.at_s
            if conversation.at_s >= self._limits.duration_s:
                return
            ahead_s = due_s - now_s()
            if ahead_s > SPIN_S:
                await asyncio.sleep(ahead_s)
            if self._open():
                group.create_task(self._converse(conversation, due_s))
                await asyncio.sleep(0)

    def _open(self) -> bool:
        return self._left > 0 and not self.stopping

    async def _converse(self, conversation: Conversation, due_s: float) -> bool:
        """Play all its turns; False if one failed, which ends it."""
        messages: list[dict[str, str]] = []
        system = conversation.system_text()
        for turn in conversation.turns:
            if not self._open():
                return True
            content, system = system + turn.text(), ""
            messages.append({"role": "user", "content": content})
            sample, text = await self._ask(messages, turn, due_s)
            if sample.error:
                return False
            messages.append({"role": "assistant", "content": text})
            if turn is not conversation.turns[-1]:
                await asyncio.sleep(conversation.think_s)
                due_s = sample.done_s + conversation.think_s
        return True

    async def _ask(
        self, messages: list[dict[str, str]], turn: Turn, due_s: float
    ) -> tuple[Sample, str]:
        sample = Sample(number=next(self._numbers), intended_s=due_s)
        self._left -= 1
        self._run.samples.append(sample)
        text = ""
        if len(self._in_flight) >= self._limits.in_flight_max:
            sample.error, sample.sent_s = "not_sent", now_s()
            sample.done_s = sample.sent_s
        else:
            self._in_flight.add(sample.number)
            try:
                text = await self._client.ask(messages, turn.output_tokens, sample)
            finally:
                self._in_flight.discard(sample.number)
        if self._on_done is not None:
            self._on_done(sample)
        return sample, text

    def give_up(self) -> None:
        """Mark what was cancelled."""
        ended_s = now_s()
        for sample in self._run.samples:
            if sample.done_s == 0.0:
                sample.error, sample.done_s = "unfinished", ended_s
