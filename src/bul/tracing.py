"""Traces: which spans a request leaves, under whose id, and whether anybody is told (W3C levels).

Refuses to know where spans go (a sink takes them; `metrics/otlp.py` is one), to keep a context
that follows threads by itself (a span is handed on, or it is not there), and to be there at all
where nobody asked for it: without a tracer a request has no span, and `None` costs nothing.

    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
                    trace id                         parent's span    flags: 1 is sampled

Sampling is decided once, by who begins a trace; whoever comes after does as the flag says. What is
not sampled still has an id, for the logs. Attributes are figures and words of ours: no text, no
token, no key, no hash of one may be put there.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from bul.clock import Clock, SystemClock

__all__ = ["HEADER", "Attributes", "Span", "Tracer", "id_of", "parse_traceparent"]

Attributes = Mapping[str, str | float | bool]
Kind = Literal["server", "client", "internal"]

HEADER: Final = b"traceparent"
EVENTS_MAX: Final = 32
"""Of one span; a stream that is hedged without end must not grow one."""
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


def parse_traceparent(value: bytes) -> tuple[int, int, bool] | None:
    """Trace id, the parent's span id, whether it is sampled; None for what is not well-formed.

    A version after 00 may say more behind these fields; 00 may not, and ff is none.
    """
    found = _PARENT.fullmatch(value)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    trace_id, parent_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not parent_id:
        return None
    return trace_id, parent_id, bool(int(found[4], 16) & _SAMPLED)


class Span:
    """A piece of one request's work. Seconds are the clock's `now_s`. Not thread-safe: one thread
    at a time works on a span, and hands its children on.

    parent_id: 0 for a trace's first. error: a word of ours, "" if all went well. Of one that is not
    sampled every method does nothing, and `child` is the span itself.
    """

    __slots__ = (
        "_tracer", "attributes", "end_s", "error", "events", "kind", "name", "parent_id", "sampled",
        "span_id", "start_s", "trace_id",
    )  # fmt: skip

    def __init__(
        self, tracer: Tracer, name: str, ids: tuple[int, int, int], kind: Kind, start_s: float,
        *, sampled: bool,
    ) -> None:  # fmt: skip
        self._tracer = tracer
        self.name = name
        self.trace_id, self.span_id, self.parent_id = ids
        self.kind = kind
        self.start_s = start_s
        self.end_s: float | None = None
        self.sampled = sampled
        self.attributes: dict[str, str | float | bool] = {}
        self.events: list[tuple[float, str, Attributes]] = []
        self.error = ""

    @property
    def trace_hex(self) -> str:
        """The trace's id as logs and headers spell it."""
        return f"{self.trace_id:032x}"

    @property
    def header(self) -> bytes:
        """The traceparent with which the work goes on elsewhere."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, self.sampled)

    def child(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: Kind = "internal",
        start_s: float | None = None,
    ) -> Span:
        """Work within this one, from now on or from `start_s` on."""
        return self._tracer.within(self, name, attributes, kind, start_s) if self.sampled else self

    def add(
        self,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Attributes | None = None,
        *,
        error: str = "",
    ) -> None:
        """A child that is over already."""
        if self.sampled:
            child = self.child(name, attributes, start_s=start_s)
            child.error = error
            child.end(end_s)

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Something that happened just now."""
        if self.sampled and len(self.events) < EVENTS_MAX:
            self.events.append((self._tracer.now_s(), name, attributes or {}))

    def set(self, attributes: Attributes) -> None:
        """Say more about it; the last word on a name counts."""
        if self.sampled:
            self.attributes.update(attributes)

    def fail(self, error: str) -> None:
        """It did not go well; the first word counts."""
        self.error = self.error or error

    def end(self, at_s: float | None = None) -> None:
        """It is over, and goes to the sink. Idempotent."""
        if self.sampled and self.end_s is None:
            self.end_s = self._tracer.now_s() if at_s is None else at_s
            self._tracer.sink(self)


class Tracer:
    """Begins traces, or goes on with those of others. Any thread.

    sink: gets every ended span of a sampled trace; must return at once. sample_share: of the traces
    that begin here; by their ids, so that several processes with one share agree.
    """

    def __init__(
        self,
        sink: Callable[[Span], None],
        *,
        sample_share: float,
        clock: Clock | None = None,
        ids: random.Random | None = None,
    ) -> None:
        self.sink = sink
        self.now_s = (clock or SystemClock()).now_s
        self._sampled_below = round(sample_share * (1 << 64))
        self._bits = (ids or random.Random()).getrandbits  # no secrets: the system's cost 5 us more

    def start(self, name: str, parents: Sequence[bytes] = (), *, kind: Kind = "server") -> Span:
        """The span of a request. parents: the values of its traceparent headers; unless there is
        one, and it is well-formed, a new trace begins.
        """
        parent = parse_traceparent(parents[0]) if len(parents) == 1 else None
        if parent is None:
            trace_id, parent_id = self._id(128), 0
            sampled = trace_id & ((1 << 64) - 1) < self._sampled_below
        else:
            trace_id, parent_id, sampled = parent
        ids = (trace_id, self._id(64), parent_id)
        return Span(self, name, ids, kind, self.now_s(), sampled=sampled)

    def within(
        self,
        parent: Span,
        name: str,
        attributes: Attributes | None,
        kind: Kind,
        start_s: float | None,
    ) -> Span:
        """For `Span.child`."""
        ids = (parent.trace_id, self._id(64), parent.span_id)
        start_s = self.now_s() if start_s is None else start_s
        span = Span(self, name, ids, kind, start_s, sampled=True)
        if attributes:
            span.attributes.update(attributes)
        return span

    def _id(self, bits: int) -> int:
        """Never 0, which means none."""
        return self._bits(bits) or 1


def id_of(span: Span | None) -> str:
    """The trace's id for a line of a log; "" without one."""
    return "" if span is None else span.trace_hex
