"""Continuous batching over one `ModelCore`, in a thread of its own, behind an async face.

Refuses to block the event loop, to hold a slot for a request that waits (for a load, or for
another request that computes the same blocks), and to let one request's failure reach another.

A turn of the loop:

    receive      new requests, settled matches, cancellations: all through one queue
    expire       deadlines; matches that do not settle
    match        ask the cache for queued requests (`active.WaitingRoom` bounds how many)
    admit        at most one ready request takes a slot and loads its blocks
    prefill      at most one call: a block or tail of the next request in turn
    decode       one call: the next token of every generating request

A long prompt thus delays the others' tokens by one block at a time. After each core call the new
text goes to the event loops, one wake-up each (`outbox.Postman`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import threading
from collections.abc import AsyncGenerator, Mapping
from queue import Empty, SimpleQueue
from typing import Final

from bul.blocks.prefix import NoCache, PrefixCache
from bul.clock import Clock, SystemClock
from bul.errors import BulError, EngineClosed, InvalidRequest, Overloaded
from bul.inference.active import ActiveRequest, WaitingRoom
from bul.inference.batch import Batch
from bul.inference.contract import Delta, GenerateRequest, ModelCore, RunnerLoad
from bul.inference.counters import RunnerCounters
from bul.inference.fail_open import FailOpenCache
from bul.inference.outbox import Outbox, Postman
from bul.inference.resumed import ended_with, text_after
from bul.inference.traced import tell

__all__ = ["BatchingRunner"]

_JOIN_S: Final = 30.0
_RETRY_AFTER_MAX_S: Final = 30.0


class _Event(enum.Enum):
    SUBMIT = enum.auto()
    SETTLED = enum.auto()
    CANCEL = enum.auto()
    STOP = enum.auto()


class BatchingRunner:
    """A `Runner`. Owns `core` from now on: only its thread calls it, `close` closes it.

    waiting_max: requests beyond the slots, more are `Overloaded`. request_deadline_s: from arrival
    to the last token. cache_generated: also keep blocks completed by decoded tokens.
    heartbeat_s: how long an idle loop sleeps at most; deadlines are that exact.
    """

    def __init__(
        self,
        core: ModelCore,
        cache: PrefixCache | None = None,
        *,
        waiting_max: int = 256,
        request_deadline_s: float = 300.0,
        cache_generated: bool = False,
        clock: Clock | None = None,
        heartbeat_s: float = 1.0,
    ) -> None:
        self._core = core
        self._clock = clock or SystemClock()
        self._live_max = core.slots + waiting_max
        self._deadline_s = request_deadline_s
        # Caches have their own deadlines for loads and claims; this is for one that broke them.
        self._patience_s = request_deadline_s / 2
        self._heartbeat_s = heartbeat_s
        self._cache = FailOpenCache(NoCache() if cache is None else cache, core.block_bytes)
        self._counters = RunnerCounters()
        self._postman = Postman()
        self._room = WaitingRoom(matched_max=max(32, 4 * core.slots))
        self._batch = Batch(
            core,
            self._cache,
            self._postman,
            self._counters,
            self._clock,
            cache_generated=cache_generated,
            retire=self._retire,
        )
        self._live: dict[ActiveRequest, None] = {}  # by arrival; the runner's thread only
        self._inbox: SimpleQueue[tuple[_Event, ActiveRequest | None]] = SimpleQueue()
        self._gate = threading.Condition()  # guards the next two
        self._live_count = 0
        self._closing = False
        self._stopping = False
        self._oldest_arrival_s: float | None = None
        self._running = 0
        self._beat_s = self._clock.now_s()
        self._thread = threading.Thread(target=self._run, name="bul-runner", daemon=True)
        self._thread.start()

    @property
    def core(self) -> ModelCore:
        return self._core

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Stream one reply; the first step raises what the contract names.

        Closing the generator cancels: the slot and the claims are free one loop turn later.
        """
        active = self._submit(request)
        finished = False
        try:
            while not finished:
                delta = await active.outbox.get()
                finished = delta.finish_reason is not None
                yield delta
        finally:
            if not finished:
                self._inbox.put((_Event.CANCEL, active))

    def load(self) -> RunnerLoad:
        """A snapshot; any thread, no lock."""
        now_s, oldest_s = self._clock.now_s(), self._oldest_arrival_s
        return RunnerLoad(
            running=self._running,
            waiting=max(0, self._live_count - self._running),
            slots=self._core.slots,
            loop_age_s=max(0.0, now_s - self._beat_s),
            prefill_tokens_per_s=self._batch.prefill_rate.per_s,
            decode_tokens_per_s=self._batch.decode_rate.per_s,
            queue_delay_s=0.0 if oldest_s is None else max(0.0, now_s - oldest_s),
        )

    def stats(self) -> Mapping[str, int]:
        """Counters since the start, names as in `RunnerCounters`; any thread."""
        counters = dataclasses.asdict(self._counters)
        counters["cache_errors_total"] += self._cache.errors
        return counters

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, let running ones finish for `drain_s` seconds, then stop.

        Those left get `EngineClosed`. Closes the core. Idempotent.
        """
        with self._gate:
            self._closing = True
        try:
            await asyncio.to_thread(self._wait_until_drained, drain_s)
        finally:  # who is interrupted while draining wants it to end now
            self._inbox.put((_Event.STOP, None))
        await asyncio.to_thread(self._thread.join, _JOIN_S)

    def _wait_until_drained(self, drain_s: float) -> None:
        with self._gate:
            self._gate.wait_for(lambda: self._live_count == 0, timeout=drain_s)

    def _submit(self, request: GenerateRequest) -> ActiveRequest:
        active = self._active(request)
        with self._gate:
            if self._closing:
                raise EngineClosed("the engine is stopping", hint="send the request elsewhere")
            if self._live_count >= self._live_max:
                delay_s = self.load().queue_delay_s
                raise Overloaded(
                    f"{self._live_max} requests are running or waiting",
                    retry_after_s=min(_RETRY_AFTER_MAX_S, max(1.0, delay_s)),
                )
            self._live_count += 1
            self._inbox.put((_Event.SUBMIT, active))
        return active

    def _active(self, request: GenerateRequest) -> ActiveRequest:
        """Check the request against the core; clip its output to the context."""
        prompt, room = len(request.tokens), self._core.context_tokens - len(request.tokens)
        if prompt < 1:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if room < 1:
            raise InvalidRequest(
                f"the prompt has {prompt} tokens; with one token of output the model's context of "
                f"{self._core.context_tokens} tokens is exceeded",
                param="prompt",
                code="context_length_exceeded",
            )
        if request.sampling.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        if ended_with(request, self._core) is not None:
            raise InvalidRequest("what was generated elsewhere leaves nothing to generate")
        resumed = request.resumed
        now_s = self._clock.now_s()
        return ActiveRequest(
            request=request,
            outbox=Outbox(asyncio.get_running_loop()),
            arrival_s=now_s,
            deadline_s=now_s + self._deadline_s,
            max_tokens=min(request.sampling.max_tokens, room),
            tokens=[*request.tokens, *resumed],
            prompt_tokens=prompt + len(resumed),
            text=text_after(request, self._core),
            resumed_tokens=len(resumed),
            posted=prompt + len(resumed),
        )

    # From here on: the runner's own thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._receive()
                try:
                    self._turn()
                except Exception as error:  # noqa: BLE001 - a fault of ours ends requests, not the loop
                    self._batch.fail(list(self._live), error)
                self._flush()
        finally:
            self._end()

    def _receive(self) -> None:
        """Take all events; with nothing to do, sleep until one comes or the heart beats."""
        idle = self._batch.has_free_slot
        has_work = bool(self._batch.running) or self._room.can_match(slot_is_idle=idle)
        has_work = has_work or (self._room.has_ready and idle)
        try:
            self._handle(*self._inbox.get(block=not has_work, timeout=self._heartbeat_s))
            while True:
                self._handle(*self._inbox.get_nowait())
        except Empty:
            pass

    def _handle(self, event: _Event, active: ActiveRequest | None) -> None:
        if active is None:
            self._stopping = True
        elif event is _Event.SUBMIT:
            self._counters.requests_total += 1
            self._live[active] = None
            self._room.add(active)
        elif event is _Event.SETTLED:
            self._room.settle(active)
        elif not active.done:
            self._counters.cancelled_total += 1
            self._batch.keep_computed(active)
            self._retire(active)

    def _turn(self) -> None:
        now_s = self._clock.now_s()
        self._expire(now_s)
        idle = self._batch.has_free_slot
        while (active := self._room.take_queued(slot_is_idle=idle)) is not None:
            self._match(active, now_s)
        ready = self._room.take_ready() if self._batch.has_free_slot else None
        if ready is not None:
            self._batch.admit(ready)
            self._publish()
        self._batch.prefill_one()
        self._flush()
        self._batch.decode_all()

    def _expire(self, now_s: float) -> None:
        """All deadlines are equally long, so the oldest requests expire first."""
        expired = []
        for active in self._live:
            if active.deadline_s > now_s:
                break
            expired.append(active)
        for active in expired:
            self._counters.deadline_total += 1
            self._batch.keep_computed(active)
            self._fail(active, Overloaded(f"not finished within {self._deadline_s} s"))
        for active in self._room.impatient(now_s - self._patience_s):
            self._counters.cache_impatient_total += 1
            self._release(active)
            self._room.settle(active)

    def _match(self, active: ActiveRequest, now_s: float) -> None:
        """Ask the cache; without one, or without a full block, the request is ready at once."""
        active.matched_s = now_s
        if active.request.use_cache:
            active.keys = self._batch.keys(active, active.tokens)
        if active.keys:
            active.match = self._cache.match(
                active.keys,
                active.request.facts,
                lambda: self._inbox.put((_Event.SETTLED, active)),
            )
        if active.match is None or self._cache.is_settled(active.match):
            self._room.settle(active)

    def _flush(self) -> None:
        """Send what there is; requests whose event loop is gone are cancelled."""
        self._publish()  # first: who has its last delta sees its slot free
        for loop in self._postman.flush():
            for active in [active for active in self._live if active.outbox.loop is loop]:
                self._counters.cancelled_total += 1
                self._retire(active)

    def _fail(self, active: ActiveRequest, error: BulError) -> None:
        self._postman.post(active.outbox, error)
        self._retire(active)

    def _retire(self, active: ActiveRequest) -> None:
        """The request has ended, however: leave nothing of it behind."""
        active.done = True
        self._room.remove(active)
        self._batch.leave(active)
        self._release(active)
        if active.request.use_cache:
            self._cache.finish(active.keys, active.output_tokens, active.request.facts)
        if active.request.facts.span is not None:
            tell(active, self._clock.now_s())
        del self._live[active]
        with self._gate:
            self._live_count -= 1
            self._gate.notify_all()

    def _release(self, active: ActiveRequest) -> None:
        match, active.match = active.match, None
        if match is not None:
            self._cache.release(match)

    def _publish(self) -> None:
        self._running = len(self._batch.running)
        self._oldest_arrival_s = self._room.oldest_arrival_s
        self._beat_s = self._clock.now_s()

    def _end(self) -> None:
        """Tell everybody who is left, whether the loop was stopped or broke."""
        with self._gate:
            self._closing = True
        self._stopping = True
        while not self._inbox.empty():
            self._handle(*self._inbox.get())
        for active in list(self._live):
            self._fail(active, EngineClosed("the engine stopped before the reply was finished"))
        self._flush()
        self._core.close()
