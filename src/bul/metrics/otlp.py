"""Sends ended spans to a collector: OTLP over HTTP (opentelemetry-proto, the extra `tracing`).

Refuses to make anybody wait: `take` appends to a bounded queue or drops and counts, a thread of its
own sends, and at the end it gets seconds, not for ever. A batch that a collector did not take is
sent again, ever more rarely; what comes meanwhile waits in the queue until that is full. Proxies
and certificates of the environment are not looked at: the endpoint is what `[tracing]` says.
"""

from __future__ import annotations

import collections
import itertools
import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence

import httpx
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp

from bul.clock import Clock, SystemClock
from bul.config import TracingConfig
from bul.tracing import Attributes, Span

__all__ = ["Exporter", "encode"]

BATCH_SPANS_MAX = 128
"""Encoding one takes 26 us, and other threads wait meanwhile: so many are a few milliseconds."""
ANSWER_BYTES_MAX = 64 * 1024
PAUSE_S_MIN = 0.2
PAUSE_S_MAX = 30.0
CLOCKS_APART_S = 0.05
"""The wall clock is read anew when it has been set by more than this: spans of one trace that are
sent apart must not move against each other by what a busy machine puts between two readings."""
RETRIED = frozenset((429, 502, 503, 504))
"""What OTLP lets a client send again; any other refusal would be the same next time."""
OURS = {"content-type": "application/x-protobuf", "accept-encoding": "identity"}
KINDS = {
    "server": otlp.Span.SPAN_KIND_SERVER,
    "client": otlp.Span.SPAN_KIND_CLIENT,
    "internal": otlp.Span.SPAN_KIND_INTERNAL,
}

logger = logging.getLogger(__name__)


class Exporter:
    """A sink for a `Tracer`. role: what this process is, behind the service's name.

    sent_total, dropped_total: spans; together with those that wait, all that were taken.
    """

    def __init__(self, config: TracingConfig, role: str, *, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._resource = _resource(f"{config.service_name}-{role}")
        self._epoch_s = self._clock.wall_s() - self._clock.now_s()
        self._client = httpx.Client(
            headers={**OURS, **config.headers},
            timeout=config.timeout_s,
            trust_env=False,
        )
        self._queue: collections.deque[Span] = collections.deque()
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._stop = threading.Event()
        self._away = False
        self.sent_total = 0
        self.dropped_total = 0
        self._thread = threading.Thread(target=self._run, name="bul-traces", daemon=True)
        self._thread.start()

    def take(self, span: Span) -> None:
        """Queue it, or drop it if the queue is full. Any thread; never waits for the network."""
        with self._lock:
            if len(self._queue) >= self._config.queue_spans_max or self._stop.is_set():
                self.dropped_total += 1
                return
            self._queue.append(span)
            if len(self._queue) == 1:
                self._some.set()

    def stats(self) -> Mapping[str, float]:
        """For the metrics."""
        return {
            "trace_spans_sent_total": self.sent_total,
            "trace_spans_dropped_total": self.dropped_total,
            "trace_spans_waiting": len(self._queue),
        }

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what is left, in `timeout_s` at most; the rest is dropped. Idempotent."""
        with self._lock:
            self._stop.set()
            self._some.set()
        self._thread.join(timeout_s)
        with self._lock:
            self.dropped_total += len(self._queue)
            self._queue.clear()

    def _run(self) -> None:
        pause_s, ending = self._config.interval_s, False
        while not ending:
            self._some.wait()
            ending = self._stop.wait(pause_s)  # what belongs together comes within a moment
            if self._send_all():
                pause_s = self._config.interval_s
            else:
                pause_s = min(max(2 * pause_s, PAUSE_S_MIN), PAUSE_S_MAX)
        self._client.close()

    def _send_all(self) -> bool:
        """False if the collector did not take them; then they stay at the queue's head."""
        while batch := self._first():
            try:
                refused = self._send(batch)
            except httpx.HTTPError as error:
                self._say(type(error).__name__)
                return False
            except Exception:  # a span that cannot be told must not end the thread
                logger.exception("spans could not be sent")
                refused = len(batch)
            self._done(batch, refused)
        return True

    def _first(self) -> list[Span]:
        with self._lock:
            batch = list(itertools.islice(self._queue, BATCH_SPANS_MAX))
            if not batch and not self._stop.is_set():
                self._some.clear()
            return batch

    def _done(self, batch: Sequence[Span], refused: int) -> None:
        with self._lock:
            if not self._queue:
                return  # `close` did not wait for this one, and has counted it
            for _ in batch:
                self._queue.popleft()
            self.dropped_total += refused
            self.sent_total += len(batch) - refused

    def _send(self, batch: Sequence[Span]) -> int:
        """How many the collector refused for good. Raises httpx.HTTPError for another time."""
        content = encode(batch, self._resource, self._epoch())
        endpoint = self._config.endpoint
        with self._client.stream("POST", endpoint, content=content) as response:
            if response.status_code in RETRIED:
                raise httpx.HTTPError(f"status {response.status_code}")
            body = b""
            for part in response.iter_raw():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    break
        if response.status_code != 200:
            self._say(f"status {response.status_code}")
            return len(batch)
        self._say("")
        return min(len(batch), _rejected(body))

    def _epoch(self) -> float:
        """Of the monotonic clock, on the wall."""
        epoch_s = self._clock.wall_s() - self._clock.now_s()
        if abs(epoch_s - self._epoch_s) > CLOCKS_APART_S:
            self._epoch_s = epoch_s
        return self._epoch_s

    def _say(self, trouble: str) -> None:
        """Once when it begins, once when it is over."""
        if bool(trouble) != self._away:
            self._away = bool(trouble)
            what = f"does not take spans: {trouble}" if trouble else "takes spans again"
            logger.warning("the collector %s", what)


def encode(spans: Sequence[Span], resource: Resource | None, epoch_s: float) -> bytes:
    """An ExportTraceServiceRequest. epoch_s: what to add to spans' seconds."""
    scope = otlp.ScopeSpans(
        scope=InstrumentationScope(name="bul"),
        spans=[_encoded(span, epoch_s) for span in spans],
    )
    of_process = otlp.ResourceSpans(resource=resource, scope_spans=[scope])
    request = ExportTraceServiceRequest(resource_spans=[of_process])
    content: bytes = request.SerializeToString()
    return content


def _encoded(span: Span, epoch_s: float) -> otlp.Span:
    end_s = span.start_s if span.end_s is None else span.end_s
    return otlp.Span(
        trace_id=span.trace_id.to_bytes(16, "big"),
        span_id=span.span_id.to_bytes(8, "big"),
        parent_span_id=span.parent_id.to_bytes(8, "big") if span.parent_id else b"",
        name=span.name,
        kind=KINDS[span.kind],
        start_time_unix_nano=_nanoseconds(span.start_s + epoch_s),
        end_time_unix_nano=_nanoseconds(max(end_s, span.start_s) + epoch_s),
        attributes=_pairs(span.attributes),
        events=[
            otlp.Span.Event(
                time_unix_nano=_nanoseconds(at_s + epoch_s), name=name, attributes=_pairs(said)
            )
            for at_s, name, said in span.events
        ],
        status=otlp.Status(code=otlp.Status.STATUS_CODE_ERROR, message=span.error)
        if span.error
        else None,
    )


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def _pairs(attributes: Attributes) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(given)) for name, given in attributes.items()]


def _value(given: str | float | bool) -> AnyValue:
    if isinstance(given, bool):
        return AnyValue(bool_value=given)
    if isinstance(given, int):
        return AnyValue(int_value=given)
    if isinstance(given, float):
        return AnyValue(double_value=given)
    return AnyValue(string_value=given)


def _resource(service: str) -> Resource:
    host, process = socket.gethostname(), os.getpid()
    return Resource(
        attributes=_pairs(
            {
                "service.name": service,
                "service.instance.id": f"{host}:{process}",
                "host.name": host,
                "process.pid": process,
            }
        )
    )


def _rejected(body: bytes) -> int:
    """Spans that a collector says it did not keep; an answer that cannot be read says none."""
    try:
        answer = ExportTraceServiceResponse.FromString(body)
    except DecodeError:
        return 0
    return max(0, int(answer.partial_success.rejected_spans))
