"""One request on its way: dispatched, perhaps tried again elsewhere, answered or given up.

Refuses a second try once a byte of an answer has gone to the client, and any that the retry
budget does not allow. A try that is only silent is not given up: it stays as a rival (`hedge.py`)
of the second one, and whoever answers first has won. An answer that breaks off is never passed
off as whole: a stream of events gets an error event, anything else a broken connection.
"""

from __future__ import annotations

import asyncio
import math
import typing

from bul.router.hedge import Rival
from bul.router.http1 import Request, error_response, stream_error
from bul.router.prompt import Prompt
from bul.router.replica import DOWN, READY, REMOVED, UNREADY, Replica
from bul.router.upstream import UpstreamConnection

if typing.TYPE_CHECKING:
    from bul.router.app import Router
    from bul.router.client import ClientConnection

__all__ = ["Exchange"]

STALE_MAX = 1
"""Times that a kept connection may turn out closed before a request pays from the budget."""
STALE_S = 0.05
STALE_IDLE_S = 0.5
"""A connection idle for longer than this, that breaks within STALE_S of a request, had been closed
before that request came: keep-alive timers are seconds, journeys are milliseconds.
"""
RETRY_AFTER_S = 1


class Exchange:
    """Lives from a request's last byte to its answer's. All methods run in the event loop."""

    __slots__ = (
        "_ahead",
        "_client",
        "_dialling",
        "_in_line",
        "_prompt",
        "_rival",
        "_router",
        "_sent_s",
        "_stale",
        "_to_compute",
        "_tried",
        "_upstream",
        "deadline_s",
        "hedge_s",
        "replica",
        "request",
        "started",
    )

    def __init__(
        self, router: Router, client: ClientConnection, request: Request, prompt: Prompt
    ) -> None:
        self.request = request
        self._prompt = prompt
        self._to_compute = prompt.tokens
        self._ahead = 0
        self._sent_s = 0.0
        self._in_line = False
        self.replica: Replica | None = None
        self.started = False
        self._router = router
        self.deadline_s = router.coarse_s + router.config.response_timeout_s
        self._client: ClientConnection | None = client
        self._upstream: UpstreamConnection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._tried: tuple[Replica, ...] = ()
        self._stale = 0
        self._rival: Rival | None = None
        self.hedge_s = math.inf
        """When a second replica is asked."""

    def dispatch(self) -> None:
        """Send the request to the replica that the policy picks; wait in line if none has room,
        answer 503 if none is ready.
        """
        router = self._router
        if self._in_line:
            self._in_line = False
            self.deadline_s = router.coarse_s + router.config.response_timeout_s
        replica = router.pick(self._prompt, self._tried)
        if replica is not None:
            self._send(replica)
        elif self._rival is not None:
            self.promote_rival()
        else:
            self._wait_or_give_up()

    def hedge(self, now_s: float) -> None:
        """Ask a second replica as well if it is time. That costs from the retry budget, unless the
        first one is out: then nobody believes that it will answer.
        """
        replica = self.replica
        if self.started or self._rival is not None or replica is None:
            return
        is_out = replica.state == DOWN and self._router.hedges_at_all and self._prompt.may_repeat
        if not is_out and now_s < self.hedge_s:
            return
        upstream = self._upstream
        if upstream is None or upstream.got_bytes:
            return  # a dial has a deadline of its own
        router = self._router
        tried = (*self._tried, replica)
        other = router.pick(self._prompt, tried)
        if other is None or not (is_out or router.may_retry(tried)):
            return
        router.hedges += 1
        router.probe_soon(replica)
        self._rival = Rival(
            self, upstream, sent_s=self._sent_s, to_compute=self._to_compute, ahead=self._ahead
        )
        self._tried = tried
        self._send(other)

    def _send(self, replica: Replica) -> None:
        router = self._router
        self.replica = replica
        self._sent_s = router.now_s()
        self._ahead = replica.in_flight
        if self._prompt.hints:
            self._note(replica)
        self.hedge_s = self._sent_s + router.first_bytes.delay_s(self._prompt, self._to_compute)
        replica.in_flight += 1
        replica.requests += 1
        if replica.idle and not self._stale:
            self._begin(replica.idle.pop())
        else:
            self._dialling = asyncio.get_running_loop().create_task(self._dial(replica))

    def cancel(self) -> None:
        """The client has gone: so does the connection to the replica, which then stops too."""
        self._client = None
        self._leave_line()
        self.rival_lost()
        self._release(close=True)
        self._router.cancelled += 1

    def expire(self) -> None:
        """Nothing came for too long, neither room nor an answer."""
        if self._in_line:
            self._shed()
            return
        self.rival_lost()
        self._router.timeouts += 1
        if self.replica is not None:
            self._router.failed(self.replica)
        self._failed("the replica did not answer in time", status=504)

    def pause(self) -> None:
        """The client reads slowly: let the replica's socket fill up."""
        if self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.pause_reading()

    def resume(self) -> None:
        if self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.resume_reading()

    # What the upstream connection calls.

    def refused_by(self, upstream: UpstreamConnection) -> bool:
        """Whether a 503 or 429 is not passed on, because another replica may take the request."""
        replica = upstream.replica
        if upstream.status == 429:
            replica.limit.overloaded(replica.in_flight)
        if upstream.status not in (429, 503):
            self._outrun_rival()
            return False
        if self._rival is None and not self._router.may_retry((*self._tried, replica)):
            return False
        if upstream.status == 503 and replica.state == READY:
            replica.set_state(UNREADY)  # the next probe knows better
            self._router.probe_soon(replica)
        if self._rival is not None:
            self.promote_rival()
        else:
            self._retry(replica)
        return True

    def start(self, data: bytes) -> None:
        """The first bytes for the client."""
        self.started = True
        self.deadline_s = self._router.coarse_s + self._router.config.response_timeout_s
        self._learn()
        assert self._client is not None
        self._client.write(data)

    def write(self, data: bytes) -> None:
        self.deadline_s = self._router.coarse_s + self._router.config.response_timeout_s
        assert self._client is not None
        self._client.write(data)

    def ended(self, upstream: UpstreamConnection | None, *, by_closing: bool = False) -> None:
        """The answer is whole. `upstream` is given if it can carry another one.

        by_closing: the answer had no length, so its end is the end of the client's connection.
        """
        client, self._client = self._client, None
        replica = self.replica
        self._upstream = None
        self._release(close=False)
        self._router.completed += 1
        assert replica is not None
        assert client is not None
        replica.failures_in_a_row = 0
        if upstream is not None:
            if client.write_paused and upstream.transport is not None:
                upstream.transport.resume_reading()
            upstream.since_s = self._router.now_s()
            replica.keep(upstream)
        client.answered(close=by_closing or not self.request.keep_alive)

    def upstream_lost(self, upstream: UpstreamConnection, reason: str) -> None:
        """The connection broke, or what came over it is not an answer."""
        replica = upstream.replica
        if self._was_stale(upstream):
            self._stale += 1  # nobody's fault
            self._release(close=True)
            self.dispatch()
            return
        self._router.failed(replica)
        self._failed(reason, status=502)

    # What the rival calls.

    def promote_rival(self) -> None:
        """The first try is the only one from now on: it answers after all, or the second failed."""
        rival, self._rival = self._rival, None
        assert rival is not None
        self._leave_line()
        self._release(close=True)
        self.replica = rival.replica
        self._upstream = rival.upstream
        rival.upstream.exchange = self
        self._sent_s, self._ahead = rival.sent_s, rival.ahead
        self._to_compute = rival.to_compute
        self.hedge_s = math.inf
        self.deadline_s = self._router.coarse_s + self._router.config.response_timeout_s
        if self._client is not None and self._client.write_paused:
            self.pause()

    def rival_lost(self, *, failed: bool = False) -> None:
        """The first try, if there is one, is over. failed: by its replica's fault."""
        rival, self._rival = self._rival, None
        if rival is None:
            return
        rival.upstream.close()
        rival.replica.in_flight -= 1
        self._router.freed()
        if failed:
            self._router.failed(rival.replica)

    # The rest is its own.

    def _outrun_rival(self) -> None:
        if (rival := self._rival) is not None:
            self.rival_lost()
            self._router.outrun(rival.replica)

    def _note(self, replica: Replica) -> None:
        """Remember what this dispatch leaves to compute, and that the replica will hold it."""
        prompt, now_s = self._prompt, self._router.coarse_s
        self._to_compute = prompt.tokens_after(replica.residency.matched(prompt.hints, now_s))
        replica.residency.add(prompt.hints, now_s)

    def _learn(self) -> None:
        """The first byte is here: what that says about rates and about the replica's limit."""
        replica, router = self.replica, self._router
        assert replica is not None
        waited_s = router.now_s() - self._sent_s
        router.first_bytes.observe(self._prompt, self._to_compute, waited_s)
        if self._prompt.hints:
            replica.residency.computed(self._prompt.hints, router.coarse_s)
            router.rates.observe(self._to_compute, self._ahead, waited_s * 1000)
        target_s = router.config.first_byte_target_s
        if target_s and waited_s > target_s:
            replica.limit.overloaded(replica.in_flight)
        elif self._upstream is not None and self._upstream.status != 429:
            replica.limit.good(replica.in_flight)

    def _was_stale(self, upstream: UpstreamConnection) -> bool:
        if upstream.got_bytes or upstream.idled_s < STALE_IDLE_S or self._stale >= STALE_MAX:
            return False
        return self._router.now_s() - upstream.since_s < STALE_S

    async def _dial(self, replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._router.config.connect_timeout_s):
                _, upstream = await loop.create_connection(
                    lambda: UpstreamConnection(replica), replica.host, replica.port
                )
        except OSError:  # TimeoutError is one
            if self._dialling is not asyncio.current_task():
                return
            self._dialling = None
            self._router.failed(replica)
            if replica.state not in (DOWN, REMOVED):
                replica.set_state(DOWN)
            self._failed("the replica cannot be reached", status=502)
            return
        if self._dialling is not asyncio.current_task():
            upstream.close()  # given up in the moment in which it came
            return
        self._dialling = None
        self._begin(upstream)

    def _begin(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        now_s = self._router.now_s()
        upstream.idled_s = now_s - upstream.since_s if upstream.since_s else 0.0
        upstream.since_s = now_s
        upstream.begin(self, self.request.serialise(upstream.replica.authority))
        if self._client is not None and self._client.write_paused:
            self.pause()

    def _failed(self, reason: str, *, status: int) -> None:
        replica, upstream = self.replica, self._upstream
        self._release(close=True)
        if self.started:
            self._break_off(reason, upstream)
        elif self._rival is not None:
            self.promote_rival()
        elif replica is not None and self._router.may_retry((*self._tried, replica)):
            self._retry(replica)
        else:
            self._answer(status, reason, "replica_failed", replica=replica and replica.header_line)

    def _retry(self, replica: Replica) -> None:
        self._release(close=True)
        self._router.retries += 1
        self._tried = (*self._tried, replica)
        self.deadline_s = self._router.coarse_s + self._router.config.response_timeout_s
        self.dispatch()

    def _release(self, *, close: bool) -> None:
        """Give back the replica's place; with `close`, its connection ends too."""
        if self.replica is not None:
            self.replica.in_flight -= 1
            self.replica = None
            self._router.freed()
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        upstream, self._upstream = self._upstream, None
        if close and upstream is not None:
            upstream.close()

    def _wait_or_give_up(self) -> None:
        router = self._router
        if all(replica in self._tried for replica in router.ready):
            self._give_up()
        elif router.waiting.join(self):
            self._in_line = True
            router.queued += 1
            self.deadline_s = router.coarse_s + router.waiting.deadline_s
        else:
            self._shed()

    def _leave_line(self) -> None:
        if self._in_line:
            self._in_line = False
            self._router.waiting.leave(self)

    def _shed(self) -> None:
        self._leave_line()
        self._router.shed += 1
        retry_after_s = self._router.waiting.retry_after_s()
        message = "all replicas are busy; try again later"
        self._answer(429, message, "overloaded", retry_after_s=retry_after_s)

    def _give_up(self) -> None:
        self._router.refused += 1
        self._answer(503, "no replica is ready", "no_replica", retry_after_s=RETRY_AFTER_S)

    def _answer(self, status: int, reason: str, code: str, **more: typing.Any) -> None:
        client, self._client = self._client, None
        if client is not None:
            close = not self.request.keep_alive
            client.write(error_response(status, reason, code, close=close, **more))
            client.answered(close=close)

    def _break_off(self, reason: str, upstream: UpstreamConnection | None) -> None:
        client, self._client = self._client, None
        self._router.broken += 1
        if client is None:
            return
        if upstream is not None and upstream.may_add_event:
            client.write(stream_error(reason))
            client.answered(close=True)
        else:
            client.abort()
