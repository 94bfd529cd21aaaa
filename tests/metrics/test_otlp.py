"""Spans to a collector that listens, is away, hangs or refuses; nobody ever waits for it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from bul.config import TracingConfig
from bul.metrics.otlp import BATCH_SPANS_MAX, Exporter
from bul.testing.collector import Collector
from bul.testing.upstreams import silent
from bul.testing.waiting import eventually
from bul.tracing import Tracer

SOON: dict[str, Any] = {"interval_s": 0.01, "timeout_s": 2.0}


def _spans(tracer: Tracer, count: int) -> None:
    for _ in range(count):
        tracer.start("request").end()


def _tracer(sink: Exporter) -> Tracer:
    return Tracer(sink.take, sample_share=1.0)


async def _closed(exporter: Exporter) -> None:
    await asyncio.to_thread(exporter.close)


async def test_everything_of_a_span_arrives() -> None:
    async with Collector() as collector:
        exporter = Exporter(
            TracingConfig(endpoint=collector.endpoint, headers_secret="x-key=abc", **SOON), "router"
        )
        tracer = _tracer(exporter)
        before_ns = time.time_ns()
        span = tracer.start("request")
        child = span.child("try", {"a": "b", "n": 3, "x": 0.5, "yes": True}, kind="client")
        child.event("first_byte")
        child.fail("the replica closed the connection")
        child.end()
        span.end()
        await _closed(exporter)
        try_, request = sorted(collector.spans, key=lambda found: found.name, reverse=True)
        assert (try_.service, request.service) == ("bul-router", "bul-router")
        assert (request.trace_id, request.parent_id) == (span.trace_hex, "")
        assert (try_.trace_id, try_.parent_id) == (span.trace_hex, request.span_id)
        assert try_.attributes == {"a": "b", "n": 3, "x": 0.5, "yes": True}
        assert (try_.events, try_.error) == (["first_byte"], "the replica closed the connection")
        assert before_ns - 5e7 < request.start_ns <= try_.start_ns <= try_.end_ns <= request.end_ns
        assert b"x-key: abc\r\n" in collector.raw
        assert exporter.stats() == {
            "trace_spans_sent_total": 2,
            "trace_spans_dropped_total": 0,
            "trace_spans_waiting": 0,
        }


async def test_many_spans_go_in_batches() -> None:
    async with Collector() as collector:
        exporter = Exporter(TracingConfig(endpoint=collector.endpoint, **SOON), "replica")
        _spans(_tracer(exporter), 2 * BATCH_SPANS_MAX + 1)
        await _closed(exporter)
        assert len(collector.spans) == 2 * BATCH_SPANS_MAX + 1
        assert exporter.stats()["trace_spans_dropped_total"] == 0


async def test_a_full_queue_drops_and_counts() -> None:
    async with Collector() as collector:
        slow = TracingConfig(endpoint=collector.endpoint, queue_spans_max=3, interval_s=60.0)
        exporter = Exporter(slow, "router")
        _spans(_tracer(exporter), 5)
        assert exporter.stats()["trace_spans_waiting"] == 3
        await _closed(exporter)
        assert exporter.stats()["trace_spans_sent_total"] == 3
        assert exporter.stats()["trace_spans_dropped_total"] == 2
        _spans(_tracer(exporter), 1)
        assert exporter.stats()["trace_spans_dropped_total"] == 3


async def test_a_collector_that_comes_back_gets_what_waited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Collector(status=b"503 Service Unavailable") as collector:
        exporter = Exporter(TracingConfig(endpoint=collector.endpoint, **SOON), "router")
        _spans(_tracer(exporter), 4)
        await eventually("it was asked twice", lambda: len(collector.requests) > 1)
        assert exporter.stats()["trace_spans_waiting"] == 4
        collector.status = b"200 OK"
        await eventually("all came", lambda: len(collector.spans) == 4)
        await _closed(exporter)
    said = [r.getMessage() for r in caplog.records if r.name == "bul.metrics.otlp"]
    assert len(said) == 2
    assert said[0].startswith("the collector does not take spans")
    assert said[1] == "the collector takes spans again"


@pytest.mark.parametrize(("status", "rejects", "dropped"), [(b"400 No", 0, 4), (b"200 OK", 3, 3)])
async def test_what_a_collector_refuses_for_good_is_not_sent_again(
    status: bytes, rejects: int, dropped: int
) -> None:
    async with Collector(status=status, rejects=rejects) as collector:
        exporter = Exporter(TracingConfig(endpoint=collector.endpoint, **SOON), "router")
        _spans(_tracer(exporter), 4)
        await eventually("it is done with", lambda: not exporter.stats()["trace_spans_waiting"])
        assert len(collector.requests) == 1
        assert exporter.stats()["trace_spans_dropped_total"] == dropped
        await _closed(exporter)


async def test_a_collector_that_hangs_costs_drops_and_no_wait() -> None:
    async with Collector() as collector:
        collector.behaviour = silent
        config = TracingConfig(endpoint=collector.endpoint, queue_spans_max=8, interval_s=0.01)
        exporter = Exporter(config, "router")
        tracer = _tracer(exporter)
        _spans(tracer, 1)
        await eventually("it hangs", lambda: len(collector.requests) > 0)
        _spans(tracer, 200)  # and here we are: the first one has not been answered
        assert (len(collector.requests), collector.in_flight) == (1, 1)
        assert exporter.stats()["trace_spans_dropped_total"] == 201 - 8
        # The control: whoever sends by itself does wait.
        async with httpx.AsyncClient(trust_env=False) as client:
            waiting = asyncio.create_task(client.post(config.endpoint, content=b"span"))
            await eventually("it hangs too", lambda: collector.in_flight == 2)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.to_thread(exporter.close, 0.05)
        assert exporter.stats()["trace_spans_dropped_total"] == 201


async def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    async with Collector() as collector:
        exporter = Exporter(TracingConfig(endpoint=collector.endpoint, **SOON), "router")

        async def endless(_request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")
            while True:
                writer.write(bytes(65536))
                await writer.drain()

        collector.behaviour = endless
        _spans(_tracer(exporter), 3)
        await eventually("it is done with", lambda: not exporter.stats()["trace_spans_waiting"])
        assert exporter.stats()["trace_spans_sent_total"] == 3
        await _closed(exporter)


async def test_nobody_at_the_endpoint_costs_drops_alone() -> None:
    async with Collector() as collector:
        endpoint = collector.endpoint
    exporter = Exporter(TracingConfig(endpoint=endpoint, queue_spans_max=8, **SOON), "router")
    _spans(_tracer(exporter), 20)
    await _closed(exporter)
    assert exporter.stats()["trace_spans_dropped_total"] == 20
    assert exporter.stats()["trace_spans_sent_total"] == 0
