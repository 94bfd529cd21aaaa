"""One request on its way: dispatched, perhaps tried again elsewhere, answered or given up.

Refuses a second try once a byte of an answer has gone to the client, and any that the retry
budget does not allow. A stream of one of our replicas is the exception: it goes on elsewhere
exactly after what was sent (`resuming.py`). A try that is only silent is not given up: it stays
as the rival of the second one, and whoever speaks first has won. An answer that breaks off is
never passed off as whole: a stream of events gets an error event, anything else a broken
connection.

    in line --room--> tried --silent--> two tries --first byte--> started --end--> answered
                        '--failed--> tried again              '--lost, silent--> tried elsewhere
"""

from __future__ import annotations

import typing

from bul.router.client_side import ClientSide
from bul.router.http1 import Request
from bul.router.lessons import learn
from bul.router.prompt import Prompt
from bul.router.quota import Charge
from bul.router.replica import DOWN, READY, REMOVED, UNREADY, Replica
from bul.router.resuming import OFFER_LINE, Continuation
from bul.router.upstream import UpstreamConnection

if typing.TYPE_CHECKING:
    from bul.router.app import Router
    from bul.router.client import ClientConnection

__all__ = ["Exchange"]

STALE_MAX = 1
"""Times that a kept connection may turn out closed before a request pays from the budget."""
SAFE = (b"GET", b"HEAD")
"""Methods that do no harm when two replicas are asked (RFC 9110, 9.2.1)."""


class Exchange(ClientSide):
    """Lives from a request's last byte to its answer's. All methods run in the event loop.

    _rival: an earlier try than `upstream`, that still may answer. _hedged: that one is over, and
    for slowness alone no other is asked.
    """

    __slots__ = (
        "_charge", "_hedged", "_rival", "_stale", "_stream", "_tried", "prompt", "request",
    )  # fmt: skip

    def __init__(
        self,
        router: Router,
        client: ClientConnection,
        request: Request,
        prompt: Prompt,
        charge: Charge | None = None,
    ) -> None:
        super().__init__(router, client)
        self.request = request
        self.prompt = prompt
        self._hedged = False
        self._rival: UpstreamConnection | None = None
        self._tried: tuple[Replica, ...] = ()
        self._stale = 0
        self._stream: Continuation | None = None
        self._charge = charge

    @property
    def replica(self) -> Replica | None:
        return None if self.upstream is None else self.upstream.replica

    def dispatch(self) -> None:
        """Send the request to the replica that the policy picks; wait in line if none has room,
        answer 503 if none is ready, nor may be in a moment.
        """
        router = self._router
        self._in_line = False
        replica = router.pick(self.prompt, self._tried)
        if replica is not None:
            self._send(replica)
        elif self._rival is not None:
            self._promote_rival()
        elif any(r.may_have_room_soon for r in router.replicas if r not in self._tried):
            self._wait_in_line()
        else:
            self._no_replica()

    def hedge(self, now_s: float) -> None:
        """Ask a second replica as well if it is time. That costs from the retry budget, unless the
        first one is out: then nobody believes that it will answer.
        """
        upstream = self.upstream
        if upstream is None or self._rival is not None or upstream.transport is None:
            return  # in line, hedged already, or dialling, which has a deadline of its own
        is_out = upstream.replica.is_out
        if self.started:
            if not upstream.tells_tokens:
                upstream.let_go(self)
            overdue = self._is_stalled(now_s, is_out=is_out)
        else:  # what came of an answer that is held until it is whole does not count
            overdue = self._is_overdue(upstream, now_s) or (is_out and self._may_hedge)
        if overdue:
            self._ask_another(upstream, is_out=is_out)

    def cancel(self) -> None:
        """The client has gone: so does the connection to the replica, which then stops too."""
        self._client = None
        self._leave_line()
        self._rival_lost()
        self._release(close=True)
        self._router.cancelled += 1

    def expire(self, now_s: float) -> None:
        """Nothing came for too long, neither room nor an answer."""
        if self._in_line:
            self.shed()
            return
        self.deadline_s = self.last_s + self._router.config.response_timeout_s
        if self.deadline_s >= now_s:
            return  # pieces came since then: they do not move the deadline, which costs too much
        self._rival_lost()
        self._router.timeouts += 1
        if self.replica is not None:
            self._router.failed(self.replica)
        self._failed("the replica did not answer in time", status=504)

    # What an upstream connection calls.

    def refused_by(self, upstream: UpstreamConnection) -> bool:
        """Whether a 502, 503 or 429 is not passed on, as another replica may take the request.

        502: the replica is a router itself, and lost its own replica before the first byte.
        """
        replica, router = upstream.replica, self._router
        if upstream.status == 429:
            replica.limit.overloaded(replica.in_flight)
        if upstream.status not in (429, 502, 503):
            self._won(upstream)
            return False
        if upstream is self._rival:
            self._rival_lost()
            return True
        goes_on = self._stream is not None
        if self._rival is None and not goes_on and not router.may_retry((*self._tried, replica)):
            return False
        if upstream.status == 503 and replica.state == READY:
            replica.set_state(UNREADY)  # the next probe knows better
            router.probe_soon(replica)
        if self._rival is not None:
            self._promote_rival()
        else:
            self._retry(replica)
        return True

    def start(self, upstream: UpstreamConnection, data: bytes) -> None:
        """The first bytes for the client."""
        if upstream is self._rival:
            self._promote_rival()  # its head had come before the second try was made
        self.started = True
        self.last_s = self._router.coarse_s
        secret = self._router.resume_secret
        if upstream.tells_tokens and secret is not None:
            self._stream = Continuation(self.request, secret)
        if self._charge is not None:
            self._charge.saw(data)
        learn(self._router, self.prompt, upstream)
        assert self._client is not None
        self._client.write(data)

    def write(self, upstream: UpstreamConnection, data: bytes) -> None:
        """More of the answer; of a stream that can be resumed, whole events."""
        if upstream is self._rival:
            self._promote_rival()
        now_s = self._router.coarse_s
        if now_s != self.last_s:
            if (stream := self._stream) is not None:
                stream.longest_gap_s = max(stream.longest_gap_s, now_s - self.last_s)
            self.last_s = now_s
        if self._stream is not None:
            self._stream.add(data)
        if self._charge is not None:
            self._charge.saw(data)
        assert self._client is not None
        self._client.write(data)

    def cannot_resume(self) -> None:
        """From now on the answer goes through as it comes."""
        self._stream = None

    def ended(
        self, upstream: UpstreamConnection, *, reusable: bool, by_closing: bool = False
    ) -> None:
        """The answer is whole. reusable: the connection can carry another one.

        by_closing: the answer had no length, so its end is the end of the client's connection.
        """
        client, self._client = self._client, None
        replica = upstream.replica
        assert client is not None
        if self._stream is not None:
            replica.gaps.observe(self._stream.longest_gap_s)
        if self._charge is not None:
            self._charge.settle()
        self._release(close=False)
        self._router.completed += 1
        replica.failures_in_a_row = 0
        if reusable:
            if client.write_paused and upstream.transport is not None:
                upstream.transport.resume_reading()
            upstream.since_s = self._router.now_s()
            replica.keep(upstream)
        client.answered(close=by_closing or not self.request.keep_alive)

    def upstream_lost(self, upstream: UpstreamConnection, reason: str) -> None:
        """The connection broke, or what came over it is not an answer."""
        replica = upstream.replica
        if upstream is self._rival:
            self._rival_lost()
            self._router.failed(replica)
            return
        if self._stale < STALE_MAX and upstream.was_stale(self._router.now_s()):
            self._stale += 1  # nobody's fault
            self._release(close=True)
            self.dispatch()
            return
        self._router.failed(replica)
        self._failed(reason, status=502)

    def unreachable(self, upstream: UpstreamConnection) -> None:
        """No connection could be made."""
        self._router.failed(upstream.replica)
        if upstream.replica.state not in (DOWN, REMOVED):
            upstream.replica.set_state(DOWN)
        self._failed("the replica cannot be reached", status=502)

    def will_not_go_on(self, upstream: UpstreamConnection) -> None:
        """A replica was asked to go on with a stream, and cannot."""
        self._failed("the stream could not be taken up elsewhere", status=502)

    def go_on_elsewhere(self, upstream: UpstreamConnection) -> bool:
        """Have another replica take the stream up, if that can be."""
        stream = self._stream
        sent = stream.sent_so_far() if stream is not None else None
        if stream is None or sent is None or self._rival is not None:
            return False
        stream.sent = sent
        self._tried = ()  # who failed before this stream began may have come back
        self._retry(upstream.replica)
        return True

    # The rest is its own.

    @property
    def _may_hedge(self) -> bool:
        may_repeat = self.prompt.may_repeat or self.request.method in SAFE
        return self._router.hedges_at_all and may_repeat

    def _is_overdue(self, upstream: UpstreamConnection, now_s: float) -> bool:
        """Whether the first byte should have been here by now."""
        first_bytes, prompt = self._router.first_bytes, self.prompt
        kind = first_bytes.kind(prompt, upstream.to_compute)
        late_s = now_s - upstream.since_s
        return not self._hedged and late_s >= first_bytes.delay_s(prompt, kind)

    def _is_stalled(self, now_s: float, *, is_out: bool) -> bool:
        """Whether a stream that could go on elsewhere has been silent for too long."""
        client, upstream = self._client, self.upstream
        if self._stream is None or client is None or client.write_paused or upstream is None:
            return False
        delay_s = upstream.replica.gaps.delay_s(self._router.config.hedge_delay_min_s)
        silent_s = now_s - self.last_s
        return silent_s >= delay_s or (is_out and self._may_hedge and silent_s > 0)

    def _ask_another(self, upstream: UpstreamConnection, *, is_out: bool) -> None:
        router, tried = self._router, (*self._tried, upstream.replica)
        if self.started:
            tried = (upstream.replica,)  # who failed before may have come back
        other = router.pick(self.prompt, tried)
        if other is None:
            return
        sent = self._stream.sent_so_far() if self._stream is not None else None
        if self.started and sent is None:
            return
        if not (is_out or router.may_retry(tried)):
            return
        router.hedges += 1
        router.probe_soon(upstream.replica)
        self._rival, self._tried = upstream, tried
        if self._stream is not None:
            self._stream.sent = sent
        self._send(other)

    def _send(self, replica: Replica) -> None:
        router, prompt = self._router, self.prompt
        reuse = replica.idle and not self._stale
        upstream = replica.idle.pop() if reuse else UpstreamConnection(replica)
        now_s = router.now_s()
        upstream.idled_s = now_s - upstream.since_s if upstream.since_s else 0.0
        upstream.since_s = self.last_s = now_s
        upstream.ahead = replica.in_flight
        upstream.to_compute = router.judge.to_compute
        if prompt.hints:
            router.judge.sent(prompt, replica, router.coarse_s)
        self.deadline_s = now_s + router.config.response_timeout_s
        self._hedged = False
        replica.in_flight += 1
        replica.requests += 1
        self.upstream = upstream
        upstream.begin(
            self,
            self._data_for(replica.authority),
            goes_on=self._stream is not None,
            dial_within_s=router.config.connect_timeout_s,
        )
        if self._client is not None and self._client.write_paused:
            self.pause()

    def _data_for(self, authority: bytes) -> bytes:
        request, stream = self.request, self._stream
        if stream is not None:
            return stream.request_to_go_on(authority)
        can = self._router.resume_secret is not None and not request.http10
        offers = self.prompt.stream and can
        return request.serialise(authority, extra=OFFER_LINE if offers else b"")

    def _won(self, upstream: UpstreamConnection) -> None:
        """The first word of an answer: the other try, if there is one, is over."""
        if upstream is self._rival:
            self._promote_rival()
        elif (rival := self._rival) is not None:
            self._rival_lost()
            self._router.outrun(rival.replica)
        if self._stream is not None:
            self._stream.sent = None
            self.last_s = self._router.coarse_s
            self._router.resumed += 1

    def _promote_rival(self) -> None:
        """The first try is the only one from now on: it answers after all, or the second failed."""
        rival, self._rival = self._rival, None
        assert rival is not None
        self._leave_line()
        self._release(close=True)
        self.upstream = rival
        if self._stream is not None:
            self._stream.sent = None
        self._hedged = True
        self.last_s = self._router.coarse_s
        if self._client is not None and self._client.write_paused:
            self.pause()

    def _rival_lost(self) -> None:
        """The first try, if there is one, is over."""
        rival, self._rival = self._rival, None
        if rival is not None:
            rival.close()
            rival.replica.in_flight -= 1
            self._router.freed()

    def _failed(self, reason: str, *, status: int) -> None:
        upstream = self.upstream
        if self._rival is not None:
            self._promote_rival()
        elif self.started:
            self._lost_midway(reason, upstream)
        elif upstream is not None and self._router.may_retry((*self._tried, upstream.replica)):
            self._retry(upstream.replica)
        else:
            self._release(close=True)
            replica = upstream and upstream.replica.header_line
            self._answer(status, reason, "replica_failed", replica=replica)

    def _lost_midway(self, reason: str, upstream: UpstreamConnection | None) -> None:
        """No retry budget is asked: what is lost does not work any more, so the load is not more
        than it was, and RESUMES_MAX bounds it.
        """
        if upstream is not None and self.go_on_elsewhere(upstream):
            return
        stream = self._stream
        self._release(close=True)
        if stream is not None and stream.done:
            self._end_stream()
        else:
            add_event = stream is not None or (upstream is not None and upstream.may_add_event)
            self._break_off(reason, add_event=add_event)

    def _retry(self, replica: Replica) -> None:
        self._release(close=True)
        self._router.retries += 1
        self._tried = (*self._tried, replica)
        self.dispatch()

    def _release(self, *, close: bool) -> None:
        """Give back the replica's place; with `close`, its connection ends too."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.replica.in_flight -= 1
            self._router.freed()
            if close:
                upstream.close()
