"""Ids, headers and sampling of traces: the heart, without a wire."""

from __future__ import annotations

import random

import pytest

from bul.testing.clock import ManualClock
from bul.tracing import EVENTS_MAX, Span, Tracer, id_of, parse_traceparent

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01".encode()


def _tracer(share: float = 1.0, seed: int = 0) -> tuple[Tracer, list[Span], ManualClock]:
    ended: list[Span] = []
    clock = ManualClock()
    tracer = Tracer(ended.append, sample_share=share, clock=clock, ids=random.Random(seed))
    return tracer, ended, clock


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (GOOD, True),
        (GOOD[:-2] + b"00", False),
        (GOOD[:-2] + b"03", True),
        (GOOD[:-2] + b"02", False),
        (b"01" + GOOD[2:], True),
        (b"01" + GOOD[2:] + b"-what-comes-later", True),
    ],
)
def test_a_traceparent_is_read(value: bytes, *, sampled: bool) -> None:
    assert parse_traceparent(value) == (int(TRACE, 16), int(PARENT, 16), sampled)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"garbage",
        GOOD[:-1],
        GOOD + b"0",
        GOOD + b"-more",
        b"ff" + GOOD[2:],
        GOOD.upper(),
        GOOD.replace(b"-", b"_"),
        b" " + GOOD,
        GOOD + b"\n",
        f"00-{'0' * 32}-{PARENT}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE[:-1]}g-{PARENT}-01".encode(),
        b"01" + GOOD[2:] + b"0",
    ],
)
def test_what_is_no_traceparent_is_none(value: bytes) -> None:
    assert parse_traceparent(value) is None


def test_a_trace_goes_on_under_its_parent_and_says_so_to_the_next() -> None:
    tracer, ended, _ = _tracer(share=0.0)
    span = tracer.start("request", [GOOD])
    child = span.child("try", {"n": 1})
    assert (span.trace_hex, f"{span.parent_id:016x}") == (TRACE, PARENT)
    assert child.header == f"00-{TRACE}-{child.span_id:016x}-01".encode()
    assert child.parent_id == span.span_id
    child.end()
    span.end()
    span.end()
    assert ended == [child, span]


@pytest.mark.parametrize("parents", [[], [b"garbage"], [GOOD, GOOD]])
def test_without_one_sound_parent_a_new_trace_begins(parents: list[bytes]) -> None:
    tracer, _, _ = _tracer()
    span = tracer.start("request", parents)
    assert span.parent_id == 0
    assert span.trace_hex not in (TRACE, "0" * 32)


def test_the_share_of_traces_is_taken_and_the_rest_costs_no_span() -> None:
    tracer, ended, _ = _tracer(share=0.25)
    spans = [tracer.start("request") for _ in range(4000)]
    assert 900 < sum(span.sampled for span in spans) < 1100
    left = next(span for span in spans if not span.sampled)
    assert left.child("try") is left
    left.event("happened")
    left.set({"a": 1})
    left.add("done", 0.0, 1.0)
    left.end()
    assert (left.header[-2:], left.events, left.attributes, ended) == (b"00", [], {}, [])
    assert id_of(left) == left.trace_hex
    assert id_of(None) == ""


@pytest.mark.parametrize(("share", "sampled"), [(0.0, False), (1.0, True)])
def test_none_and_all_are_exact(share: float, *, sampled: bool) -> None:
    for seed in range(200):
        assert _tracer(share, seed)[0].start("request").sampled is sampled


def test_two_processes_with_one_share_agree_on_a_trace() -> None:
    one, other = _tracer(0.5, 1)[0].start("request"), _tracer(0.5, 1)[0].start("request")
    assert one.sampled == other.sampled


def test_what_is_over_already_keeps_its_own_times() -> None:
    tracer, ended, clock = _tracer()
    span = tracer.start("request")
    clock.advance(3.0)
    span.add("load", 1.0, 2.5, {"blocks": 7}, error="timed_out")
    [load] = ended
    assert (load.start_s, load.end_s, load.attributes) == (1.0, 2.5, {"blocks": 7})
    assert load.error == "timed_out"
    span.end()
    assert span.end_s == clock.now_s()


def test_a_span_keeps_so_many_events_and_no_more() -> None:
    tracer, _, _ = _tracer()
    span = tracer.start("request")
    for _ in range(EVENTS_MAX + 5):
        span.event("again")
    assert len(span.events) == EVENTS_MAX
