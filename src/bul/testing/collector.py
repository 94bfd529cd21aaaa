"""A stand-in for an OpenTelemetry collector: takes OTLP over HTTP, and keeps what it was told.

Refuses to be more lenient than a real one: another path, method, type, or a body that is no
ExportTraceServiceRequest gets a 400. There is no collector's package in PyPI or Debian.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from bul.testing.upstreams import FakeUpstream

__all__ = ["Collector", "Received"]

ANSWER = b"HTTP/1.1 %b\r\ncontent-type: application/x-protobuf\r\ncontent-length: %d\r\n\r\n%b"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """One span as it came. parent_id: "" for none. events: their names."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[str]
    error: str


class Collector(FakeUpstream):
    """Listens while entered. status: with which it answers. rejects: spans of each batch, told."""

    def __init__(self, *, status: bytes = b"200 OK", rejects: int = 0) -> None:
        super().__init__(self._take)
        self.status = status
        self.rejects = rejects
        self.spans: list[Received] = []
        self.raw = b""

    @property
    def endpoint(self) -> str:
        return f"{self.url}/v1/traces"

    def named(self, name: str, trace_id: str = "") -> list[Received]:
        """The spans of that name, of one trace if it is given, by their start."""
        found = [span for span in self.spans if span.name == name]
        found = [span for span in found if trace_id in ("", span.trace_id)]
        return sorted(found, key=lambda span: span.start_ns)

    async def _take(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        self.raw += request
        status, answer = self.status, b""
        first, *lines = head.lower().split(b"\r\n")
        is_otlp = b"content-type: application/x-protobuf" in lines
        if not (first.startswith(b"post /v1/traces ") and is_otlp):
            status = b"400 Bad Request"
        elif status.startswith(b"200"):
            try:
                self.spans += _read(body)
            except DecodeError:
                status = b"400 Bad Request"
            else:
                told = ExportTraceServiceResponse()
                told.partial_success.rejected_spans = self.rejects
                answer = told.SerializeToString() if self.rejects else b""
        writer.write(ANSWER % (status, len(answer), answer))
        await writer.drain()


def _read(body: bytes) -> list[Received]:
    found = []
    for of_process in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _plain(of_process.resource.attributes)["service.name"]
        for scope in of_process.scope_spans:
            found += [
                Received(
                    service=service,
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_plain(span.attributes),
                    events=[event.name for event in span.events],
                    error=span.status.message,
                )
                for span in scope.spans
            ]
    return found


def _plain(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
