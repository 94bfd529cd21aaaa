"""What a router's traces tell: each try, each wait, each end; and what they must never tell."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from bul.router.exchange import Exchange
from bul.router.hedge import SEEN_MIN
from bul.router.traced import TracedExchange
from bul.testing.replica import running_replica
from bul.testing.router_net import RouterNet, post
from bul.testing.tcp_proxy import FaultProxy, Faults
from bul.testing.upstreams import answering, raw, silent, streaming
from bul.testing.waiting import until
from bul.tracing import Span, Tracer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01".encode()
CANARY = b"canary-3f1d"
LINE = re.compile(rb"^traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])\r$", re.MULTILINE)


class Traces:
    """Ended spans, and a tracer whose they are."""

    def __init__(self, share: float = 1.0) -> None:
        self.spans: list[Span] = []
        self.tracer = Tracer(self.spans.append, sample_share=share)

    def named(self, name: str) -> list[Span]:
        return sorted((s for s in self.spans if s.name == name), key=lambda s: s.start_s)

    async def request(self) -> Span:
        """The one request's span, once it has ended."""
        await until(lambda: bool(self.named("bul.router.request")))
        [span] = self.named("bul.router.request")
        return span

    def tries(self) -> list[Span]:
        return self.named("bul.router.try")


def _parents(requests: list[bytes]) -> list[tuple[str, str, str]]:
    """(trace, span, flags) of each request that a replica got; one traceparent each."""
    found = []
    for request in requests:
        [(trace, span, flags)] = LINE.findall(request)
        assert request.lower().count(b"traceparent:") == 1
        found.append((trace.decode(), span.decode(), flags.decode()))
    return found


async def test_a_request_is_one_trace_and_its_replica_goes_on_under_the_try(net: RouterNet) -> None:
    traces, upstream = Traces(), await net.upstream(answering(b"ok"))
    router = await net.router(upstream, tracer=traces.tracer)
    assert (await net.ask(router, post()))[0] == 200
    request, [one] = await traces.request(), traces.tries()
    assert _parents(upstream.requests) == [(request.trace_hex, f"{one.span_id:016x}", "01")]
    assert (request.parent_id, one.parent_id) == (0, request.span_id)
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["url.path"] == "/v1/chat/completions"
    assert request.attributes["bul.policy"] == "prefix"
    assert [name for _, name, _ in request.events] == ["first_byte"]
    assert one.attributes["bul.try"] == "first"
    assert one.attributes["bul.replica"] == upstream.url
    assert 0 < float(one.attributes["bul.score"]) <= 1
    assert one.attributes["bul.answered"] is True


async def test_a_clients_trace_goes_on_whatever_the_share(net: RouterNet) -> None:
    traces, upstream = Traces(share=0.0), await net.upstream(answering(b"ok"))
    router = await net.router(upstream, tracer=traces.tracer)
    extra = b"TraceParent: %b\r\ntracestate: a=b\r\n" % GOOD
    await net.ask(router, post(extra=extra))
    request = await traces.request()
    assert (request.trace_hex, f"{request.parent_id:016x}") == (TRACE, PARENT)
    [(trace, span, flags)] = _parents(upstream.requests)
    assert (trace, flags) == (TRACE, "01")
    assert span != PARENT
    assert b"tracestate: a=b\r\n" in upstream.requests[0]


async def test_what_is_not_sampled_leaves_nothing_and_the_replica_is_told_so(
    net: RouterNet,
) -> None:
    traces, upstream = Traces(share=0.0), await net.upstream(answering(b"ok"))
    router = await net.router(upstream, tracer=traces.tracer)
    await net.ask(router, post())
    await net.ask(router, post(extra=b"traceparent: %b\r\n" % GOOD.replace(b"-01", b"-00")))
    own, clients = _parents(upstream.requests)
    assert (own[2], clients[0], clients[2]) == ("00", TRACE, "00")
    assert traces.spans == []


@pytest.mark.parametrize(
    "lines",
    [
        b"traceparent: %b\r\n" % CANARY,
        b"traceparent: \r\n",
        b"",
        b"traceparent: %b\r\ntraceparent: %b\r\n" % (GOOD, GOOD),
        b"traceparent: %b, %b\r\n" % (GOOD, GOOD),
        b"traceparent: %b%b\r\n" % (GOOD, b"-x" * 500),
    ],
)
async def test_a_malformed_header_is_ignored_and_never_an_error(
    net: RouterNet, lines: bytes
) -> None:
    traces, upstream = Traces(), await net.upstream(answering(b"ok"))
    router = await net.router(upstream, tracer=traces.tracer)
    extra = lines + b"tracestate: b=%b\r\n" % CANARY
    assert (await net.ask(router, post(extra=extra)))[0] == 200
    request = await traces.request()
    assert (request.parent_id, request.trace_hex != TRACE) == (0, True)
    assert _parents(upstream.requests)[0][0] == request.trace_hex
    assert CANARY not in upstream.requests[0]


async def test_without_a_tracer_nothing_is_different(net: RouterNet) -> None:
    """The control: the client's own header goes through as any other, and nobody adds one."""
    upstream = await net.upstream(silent)
    router = await net.router(upstream)
    for extra in (b"", b"traceparent: %b\r\n" % GOOD):
        await (await net.client(router)).send(post(extra=extra))
    await until(lambda: len(upstream.requests) == 2)
    assert sorted(request.count(b"traceparent") for request in upstream.requests) == [0, 1]
    assert {type(client.exchange) for client in router._clients} == {Exchange}


async def test_a_retried_request_shows_both_tries(net: RouterNet) -> None:
    traces = Traces()
    bad, good = await net.upstream(raw(b"")), await net.upstream(answering(b"ok"))
    router = await net.router(bad, good, policy="round_robin", tracer=traces.tracer)
    for _ in range(2):  # one of them begins at the bad one
        assert (await net.ask(router, post()))[0] == 200
    retried = next(s for s in traces.named("bul.router.request") if s.attributes["bul.tries"] == 2)
    first, second = [s for s in traces.tries() if s.trace_id == retried.trace_id]
    assert (first.attributes["bul.try"], second.attributes["bul.try"]) == ("first", "retry")
    assert first.error == "the replica closed the connection"
    assert first.attributes["bul.replica"] == bad.url
    assert (second.error, second.attributes["bul.replica"]) == ("", good.url)
    spans = {span for _, span, _ in _parents([*bad.requests, *good.requests])}
    assert {f"{first.span_id:016x}", f"{second.span_id:016x}"} <= spans


async def test_a_refusal_is_told_with_its_status(net: RouterNet) -> None:
    traces = Traces()
    busy = await net.upstream(answering(b"", status=b"503 Service Unavailable"))
    good = await net.upstream(answering(b"ok"))
    router = await net.router(
        busy, good, policy="round_robin", probe_interval_s=60.0, tracer=traces.tracer
    )
    for _ in range(2):
        assert (await net.ask(router, post()))[0] == 200
    refused = next(s for s in traces.tries() if s.attributes["http.response.status_code"] == 503)
    both = [span for span in traces.tries() if span.trace_id == refused.trace_id]
    assert [span.attributes["http.response.status_code"] for span in both] == [503, 200]


async def test_a_hedged_request_shows_who_was_silent(net: RouterNet) -> None:
    traces = Traces()
    first, second = [await net.upstream(answering(b"ok")) for _ in range(2)]
    settings: dict[str, Any] = {"policy": "round_robin", "hedge_delay_min_s": 0.1}
    router = await net.router(first, second, tracer=traces.tracer, **settings)
    for _ in range(SEEN_MIN + 4):
        await net.ask(router, post())
    first.behaviour = silent
    await asyncio.gather(*(net.ask(router, post()) for _ in range(2)))
    [hedge] = [span for span in traces.tries() if span.attributes["bul.try"] == "hedge"]
    assert hedge.attributes["bul.replica"] == second.url
    both = [span for span in traces.tries() if span.trace_id == hedge.trace_id]
    assert [span.attributes.get("bul.answered", False) for span in both] == [False, True]


async def test_a_resumed_stream_shows_where_it_broke_off_and_where_it_went_on(
    net: RouterNet,
) -> None:
    traces, served = Traces(), Traces(share=0.0)
    async with contextlib.AsyncExitStack() as stack:
        proxies = []
        for _ in range(2):
            running = running_replica(tracer=served.tracer)
            replica = await stack.enter_async_context(running)
            proxies.append(await stack.enter_async_context(FaultProxy("127.0.0.1", replica.port)))
        router = await net.router(
            *(proxy.url for proxy in proxies),
            policy="round_robin",
            probe_interval_s=60.0,
            tracer=traces.tracer,
        )
        proxies[0].to_client = Faults(cut_at=1500)
        messages = [{"role": "user", "content": "tell me a story " * 9}]
        body: dict[str, Any] = {"model": "bul-timed", "messages": messages}
        body |= {"max_tokens": 16, "temperature": 0, "stream": True}
        while not router.resumed:  # the second one at most begins at the one that breaks off
            client = await net.client(router)
            await client.send(post(json.dumps(body).encode(), extra=b"connection: close\r\n"))
            assert b"[DONE]" in await client.rest()
        await until(lambda: len(served.named("bul.replica.request")) == len(traces.tries()))
    [resume] = [span for span in traces.tries() if span.attributes["bul.try"] == "resume"]
    first, second = [span for span in traces.tries() if span.trace_id == resume.trace_id]
    assert second is resume
    assert (first.error, second.error) == ("the replica closed the connection", "")
    found = {span.parent_id: span for span in served.named("bul.replica.request")}
    assert {found[first.span_id].trace_id, found[second.span_id].trace_id} == {resume.trace_id}
    [request] = [s for s in traces.named("bul.router.request") if s.trace_id == resume.trace_id]
    assert request.error == ""


async def test_waiting_in_line_is_a_span_and_so_is_being_turned_away(net: RouterNet) -> None:
    traces, upstream = Traces(), await net.upstream(silent)
    settings: dict[str, Any] = {"in_flight_max": 1, "queue_max": 1, "queue_deadline_s": 60.0}
    router = await net.router(upstream, tracer=traces.tracer, **settings)
    first, second = await net.client(router), await net.client(router)
    await first.send(post())
    await until(lambda: router.replicas[0].in_flight == 1)
    await second.send(post())
    await until(lambda: len(router.waiting) == 1)
    assert (await net.ask(router, post()))[0] == 429
    turned_away = await traces.request()
    assert (turned_away.error, turned_away.attributes["bul.tries"]) == ("overloaded", 0)
    upstream.behaviour = answering(b"ok")
    first.close()
    assert (await second.answer())[0] == 200
    gone, served = traces.named("bul.router.request")[:2]
    assert gone.error == "the client left"
    [_, waited] = sorted(traces.named("bul.router.queue"), key=lambda s: s.end_s or 0.0)
    assert (waited.trace_id, waited.parent_id) == (served.trace_id, served.span_id)


@pytest.mark.parametrize(
    ("behaviour", "settings", "error", "status"),
    [
        (raw(b""), {}, "replica_failed", 502),
        (silent, {"response_timeout_s": 0.1}, "replica_failed", 504),
        (streaming([b"data: 1\n\n"], die=True), {}, "stream_broken", None),
    ],
)
async def test_however_it_ends_the_trace_ends_too(
    net: RouterNet, behaviour: Any, settings: Mapping[str, Any], error: str, status: int | None
) -> None:
    traces = Traces()
    router = await net.router(await net.upstream(behaviour), tracer=traces.tracer, **settings)
    client = await net.client(router)
    await client.send(post(extra=b"connection: close\r\n"))
    await client.rest()
    request = await traces.request()
    assert (request.error, request.attributes.get("http.response.status_code")) == (error, status)
    [one] = traces.tries()
    assert one.error != ""


async def test_no_replica_at_all_is_a_trace_without_a_try(net: RouterNet) -> None:
    traces = Traces()
    router = await net.router(tracer=traces.tracer)
    assert (await net.ask(router, post()))[0] == 503
    assert (await traces.request()).error == "no_replica"
    assert traces.tries() == []


@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_explain_names_the_trace(net: RouterNet, share: float) -> None:
    traces, upstream = Traces(share), await net.upstream(answering(b"ok"))
    router = await net.router(upstream, tracer=traces.tracer)
    told: list[Mapping[str, object]] = []
    router.judge.explain = told.append
    await net.ask(router, post())
    [line] = told
    assert line["trace_id"] == _parents(upstream.requests)[0][0]
    assert line["chosen"] == upstream.url


@pytest.mark.security
async def test_no_text_no_key_and_no_path_of_a_client_is_told(net: RouterNet) -> None:
    traces, upstream = Traces(), await net.upstream(answering(CANARY))
    router = await net.router(upstream, tracer=traces.tracer)
    body = b'{"model":"%b","messages":[{"role":"user","content":"%b"}]}' % (CANARY, CANARY)
    extra = b"authorization: Bearer %b\r\nx-session-id: %b\r\n" % (CANARY, CANARY)
    await net.ask(router, post(body, path=b"/v1/%b?key=%b" % (CANARY, CANARY), extra=extra))
    await traces.request()
    told = repr([(s.name, s.attributes, s.events, s.error) for s in traces.spans])
    assert CANARY in upstream.requests[0]  # the control: it was there to be told
    assert CANARY.decode() not in told
    assert "'url.path': 'other'" in told


def test_the_exchange_itself_knows_nothing_of_traces() -> None:
    """Those who do not trace run the very code that there was before."""
    assert issubclass(TracedExchange, Exchange)
    assert not any("span" in name or "trac" in name for name in Exchange.__slots__)
