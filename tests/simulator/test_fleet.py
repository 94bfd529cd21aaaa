"""A fixed fleet with caches: it hits what the cache replay says, and routes to who holds it."""

from __future__ import annotations

import random

import pytest

from bul.cache.eviction.make import make_policy
from bul.cache.replay import replay
from bul.cache.replay_trace import Trace, TraceRequest
from bul.errors import ConfigError
from bul.simulator.arrivals import arrivals_of_trace
from bul.simulator.fleet import FleetResult, simulate_region

BLOCK = 16


def sessions(gap_s: float, count: int = 40, turns: int = 6, seed: int = 3) -> Trace:
    """Conversations that grow by two blocks and a half a turn, in a drawn order."""
    rng = random.Random(seed)
    order = [session for session in range(count) for _ in range(turns)]
    rng.shuffle(order)
    said = dict.fromkeys(range(count), 0)
    requests = []
    for position, session in enumerate(order):
        said[session] += 1
        blocks = 4 + 2 * said[session]
        requests.append(
            TraceRequest(
                at_s=position * gap_s,
                input_tokens=blocks * BLOCK + BLOCK // 2,
                output_tokens=8,
                path=tuple(session * 1000 + depth for depth in range(blocks)),
                session="",
            )
        )
    return Trace(name="made", block_tokens=BLOCK, requests=tuple(requests))


def play(trace: Trace, policy: str, replicas: int = 4, capacity: int = 120) -> FleetResult:
    return simulate_region(trace, replicas, policy, "lru", capacity)


@pytest.mark.parametrize("capacity", [30, 120, 10_000])
def test_one_replica_hits_what_the_cache_replay_says(capacity: int) -> None:
    """Requests far apart, so that the order of prefills is that of the trace."""
    trace = sessions(gap_s=10.0)
    expected = replay(trace, make_policy("lru", capacity))
    found = play(trace, "round_robin", 1, capacity)
    assert found.prompt_tokens == expected.input_tokens
    assert found.cached_tokens == expected.hit_tokens
    assert found.cached_tokens > 0


def test_requests_go_where_their_prefix_lies_and_wait_less() -> None:
    trace = sessions(gap_s=0.02)
    prefix, blind = play(trace, "prefix"), play(trace, "round_robin")
    assert prefix.cached_token_share > 2 * blind.cached_token_share
    assert prefix.ttft_p50_ms < blind.ttft_p50_ms


def test_a_prefix_that_everybody_asks_for_does_not_drown_its_holder() -> None:
    hot = tuple(range(20))
    requests = [
        TraceRequest(
            at_s=position * 0.01,
            input_tokens=22 * BLOCK,
            output_tokens=40,
            path=(*(hot if position % 5 else range(-20, 0)), 1000 + position),
            session="",
        )
        for position in range(600)
    ]
    found = play(Trace(name="hot", block_tokens=BLOCK, requests=tuple(requests)), "prefix")
    assert found.in_flight_max_over_mean <= 1.5


def test_the_same_arguments_give_the_same_result() -> None:
    trace = sessions(gap_s=0.02)
    assert play(trace, "prefix") == play(trace, "prefix")


def test_without_blocks_nothing_is_a_hit() -> None:
    bare = arrivals_of_trace(sessions(gap_s=0.02))
    bare = bare.past_unbounded_cache()
    found = simulate_region(bare, 2, "prefix", "lru", 100)
    assert found.cached_tokens == 0
    assert found.requests == len(bare)


def test_an_unknown_route_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown route: nearest"):
        play(sessions(1.0), "nearest")
