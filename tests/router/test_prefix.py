"""The policy `prefix`: what it knows, how it weighs, and that a hot prefix drowns nobody."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable, Sequence

import pytest

from bul.blocks.text_chain import (
    CHUNK_BYTES,
    FIRST_BYTES,
    TEXT_BYTES_MAX,
    chat_text,
    hinted_bytes,
    text_hints,
    text_root,
)
from bul.router.http1 import Request
from bul.router.prompt import NO_PROMPT, Prompt, read_prompt
from bul.router.rates import PER_REQUEST_MS, PER_TOKEN_MS, Rates
from bul.router.residency import Residency
from bul.router.route import choose, choose_prefix, load_limit, pick, score_prefix
from bul.testing.router_net import RouterNet, post
from bul.testing.upstreams import answering

TEXT = b"".join(b"%07d " % number for number in range(1024))


def test_equal_beginnings_have_equal_hints_and_only_those() -> None:
    root = text_root("m", b"")
    whole = text_hints(root, TEXT)
    assert len(whole) == 1 + len(TEXT) // CHUNK_BYTES == 9
    assert text_hints(root, TEXT[: 4 * CHUNK_BYTES]) == whole[:5]
    changed = bytearray(TEXT)
    changed[4 * CHUNK_BYTES] ^= 1
    assert text_hints(root, bytes(changed))[:5] == whole[:5]
    assert not set(text_hints(root, bytes(changed))[5:]) & set(whole)
    changed = bytearray(TEXT)
    changed[0] ^= 1
    assert not set(text_hints(root, bytes(changed))) & set(whole)
    changed = bytearray(TEXT)
    changed[FIRST_BYTES] ^= 1
    assert text_hints(root, bytes(changed))[:1] == whole[:1]
    assert not set(text_hints(root, bytes(changed))[1:]) & set(whole)


@pytest.mark.parametrize(
    ("size", "hints"),
    [
        (0, 0),
        (FIRST_BYTES - 1, 0),
        (FIRST_BYTES, 1),
        (CHUNK_BYTES - 1, 1),
        (CHUNK_BYTES, 2),
        (2 * CHUNK_BYTES - 1, 2),
        (2 * CHUNK_BYTES, 3),
        (TEXT_BYTES_MAX, TEXT_BYTES_MAX // CHUNK_BYTES + 1),
        (TEXT_BYTES_MAX + CHUNK_BYTES, TEXT_BYTES_MAX // CHUNK_BYTES + 1),
    ],
)
def test_a_partial_chunk_has_no_hint(size: int, hints: int) -> None:
    found = text_hints(text_root("m", b""), b"x" * size)
    assert len(found) == hints
    covered = hinted_bytes(hints)
    assert covered <= min(size, TEXT_BYTES_MAX)
    assert Prompt(found, size / 4).tokens_after(hints) == (size - covered) / 4


def test_models_and_tenants_share_no_hint() -> None:
    chains = [
        text_hints(text_root(model, tenant), TEXT)
        for model in ("a", "b")
        for tenant in (b"", b"Bearer x", b"Bearer y")
    ]
    assert len({hint for chain in chains for hint in chain}) == 6 * 9


def test_a_chat_has_one_text_however_its_json_is_written() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat_text([("user", parts)]) == chat_text([("user", "ab")])
    assert chat_text([("user", "a"), ("user", "b")]) != chat_text([("user", "ab")])
    assert chat_text([("user", None)]) == chat_text([("user", "")])
    assert chat_text([("user", "a")], tools=[{"x": 1}]) != chat_text([("user", "a")])


def _request(body: object, path: bytes = b"/v1/chat/completions") -> Request:
    request = Request(b"POST", path, http10=False, keep_alive=True)
    request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request


def test_the_next_turn_of_a_conversation_begins_with_the_hints_of_the_last() -> None:
    messages = [{"role": "user", "content": TEXT.decode()}]
    first = read_prompt(_request({"model": "m", "messages": messages}))
    messages += [
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "more " * 200},
    ]
    second = read_prompt(_request({"messages": messages, "model": "m", "max_tokens": 5}))
    assert second.hints[: len(first.hints)] == first.hints
    assert len(second.hints) > len(first.hints)
    assert first.tokens == pytest.approx(len(TEXT) / 4, abs=2)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"messages": 1}', b'{"messages": [1]}', b"\xff", b"[" * 100_000],
)
def test_a_body_that_cannot_be_read_has_no_hints(body: bytes) -> None:
    assert read_prompt(_request(body)) is NO_PROMPT


def test_a_completion_has_hints_and_other_paths_have_none() -> None:
    document = {"model": "m", "prompt": TEXT.decode()}
    assert len(read_prompt(_request(document, b"/v1/completions")).hints) == 9
    assert read_prompt(_request(document, b"/v1/embeddings")) is NO_PROMPT


def test_residency_finds_the_longest_prefix_that_is_held() -> None:
    residency = Residency(100)
    residency.add([1, 2, 3, 4])
    for length in range(8):
        assert residency.matched([1, 2, 3, 4, 5, 6, 7][:length]) == min(length, 4)
    assert residency.matched([9, 2, 3, 4]) == 0


def test_residency_is_bounded_and_forgets_tails_before_heads() -> None:
    residency = Residency(6)
    residency.add([1, 2, 3, 4])
    residency.add([1, 2, 13, 14])
    assert len(residency) == 6
    residency.add([21])
    assert residency.matched([1, 2, 3, 4]) == 3
    residency.add([22, 23, 24])
    assert residency.matched([1, 2, 13, 14]) == 2
    residency.add(list(range(100, 200)))
    assert len(residency) == 6
    assert residency.matched(list(range(100, 200))) == 6


def test_a_residency_of_nothing_holds_nothing() -> None:
    residency = Residency(0)
    residency.add([1, 2])
    assert residency.matched([1, 2]) == len(residency) == 0


def _choose(tokens: Sequence[float], in_flight: Sequence[int], turn: int = 0) -> int:
    return choose_prefix(tokens, in_flight, turn, per_token_ms=0.5, per_request_ms=20.0)


def test_a_cached_prefix_is_worth_as_many_requests_as_it_saves_milliseconds() -> None:
    assert _choose([0.0, 1000.0], [1, 0]) == 0
    assert _choose([0.0, 9.0], [8, 7]) == 1  # 18 ms to compute against one request ahead
    assert _choose([0.0, 11.0], [8, 7]) == 0


def test_equal_costs_go_round() -> None:
    assert [_choose([10.0, 0.0], [7, 8], turn) for turn in range(2)] == [0, 1]


def test_a_miss_goes_to_the_least_loaded() -> None:
    assert [_choose([500.0] * 3, [2, 1, 2], turn) for turn in range(3)] == [1, 1, 1]
    assert [_choose([500.0] * 3, [1, 1, 2], turn) for turn in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("in_flight", "allowed"),
    [
        ([0, 0], [0, 1]),
        ([1, 0], [0, 1]),
        ([5, 0], [0, 1]),
        ([6, 0], [1]),
        ([11, 8, 8, 8], [0, 1, 2, 3]),
        ([12, 8, 8, 8], [1, 2, 3]),
        ([5], [0]),
    ],
)
def test_nobody_may_have_more_than_his_share(in_flight: list[int], allowed: list[int]) -> None:
    tokens = [0.0] * len(in_flight)
    scores = score_prefix(tokens, in_flight, per_token_ms=0.5, per_request_ms=20.0)
    assert [index for index, score in enumerate(scores) if score > 0] == allowed
    assert min(in_flight) < load_limit(in_flight)
    assert all(0 <= score <= 1 for score in scores)


def test_rates_follow_what_is_measured() -> None:
    rates, dice = Rates(), random.Random(1)
    for _ in range(4000):
        tokens, ahead = dice.uniform(0, 4000), dice.randrange(8)
        noise_ms = dice.gauss(0, 30)
        rates.observe(tokens, ahead, 0.1 * tokens + 55 * ahead + 300 + noise_ms)
    assert rates.per_token_ms == pytest.approx(0.1, rel=0.1)
    assert rates.per_request_ms == pytest.approx(55, rel=0.1)


def test_rates_that_cannot_be_told_apart_stay_and_none_is_negative() -> None:
    rates = Rates()
    assert (rates.per_token_ms, rates.per_request_ms) == (PER_TOKEN_MS, PER_REQUEST_MS)
    for number in range(1000):
        rates.observe(number % 7 * 100.0, number % 5, 1000.0 - number % 7 * 100.0)
    assert rates.per_token_ms >= 0
    assert rates.per_request_ms > 0


Chooser = Callable[[Sequence[float], Sequence[int], int], int]


def _bounded(tokens: Sequence[float], in_flight: Sequence[int], turn: int) -> int:
    return _choose(tokens, in_flight, turn)


def _locality_alone(tokens: Sequence[float], _in_flight: Sequence[int], turn: int) -> int:
    return pick([1 / (1 + compute) for compute in tokens], turn)


def _load_alone(_tokens: Sequence[float], in_flight: Sequence[int], turn: int) -> int:
    return choose("least_conn", in_flight, turn)


def _hot_prefix(chooser: Chooser, seed: int) -> tuple[float, float]:
    """80 % of the requests share one prefix of 4,000 tokens, the rest are conversations of their
    own; four replicas that compute one prompt at a time and decode side by side.

    Returns the mean over time of max/mean requests in flight, and the cached-token share.
    """
    dice, replicas = random.Random(seed), 4
    held = [Residency(2048) for _ in range(replicas)]
    in_flight, free_s = [0] * replicas, [0.0] * replicas
    ends: list[tuple[float, int]] = []
    now_s = worst = cached = asked = 0.0
    samples = 0
    hot = text_hints(1, b"h" * 16_000)
    for number in range(4000):
        now_s += dice.expovariate(25.0)
        while ends and ends[0][0] <= now_s:
            in_flight[heapq.heappop(ends)[1]] -= 1
        root = number if dice.random() < 0.8 else -dice.randrange(50)
        tail = text_hints(abs(root) + 2, b"t" * (1024 if root >= 0 else 8192))
        hints = hot + tail if root >= 0 else tail
        prompt = Prompt(hints, hinted_bytes(len(hints)) / 4)
        to_compute = [prompt.tokens_after(residency.matched(hints)) for residency in held]
        chosen = chooser(to_compute, in_flight, number)
        held[chosen].add(hints)
        in_flight[chosen] += 1
        cached += prompt.tokens - to_compute[chosen]
        asked += prompt.tokens
        free_s[chosen] = max(free_s[chosen], now_s) + to_compute[chosen] / 8000
        heapq.heappush(ends, (free_s[chosen] + dice.uniform(0.6, 1.8), chosen))
        if number >= 200 and sum(in_flight) >= 12:
            worst += max(in_flight) / (sum(in_flight) / replicas)
            samples += 1
    return worst / samples, cached / asked


@pytest.mark.parametrize("seed", range(5))
def test_a_hot_prefix_does_not_overload_one_replica(seed: int) -> None:
    balance, share = _hot_prefix(_bounded, seed)
    assert balance <= 1.5
    assert share > 0.95 * _hot_prefix(_locality_alone, seed)[1]


def test_locality_alone_does_overload_one_replica_and_load_alone_computes_more() -> None:
    """The controls of the one above."""
    assert _hot_prefix(_locality_alone, 0)[0] > 2.0
    assert _hot_prefix(_load_alone, 0)[1] < _hot_prefix(_bounded, 0)[1]


def _chat(conversation: int, turn: int) -> bytes:
    text = f"conversation {conversation} " * 200 + "and so on " * 60 * turn
    messages = [{"role": "user", "content": text}]
    return post(json.dumps({"model": "m", "messages": messages}).encode())


async def test_the_turns_of_a_conversation_go_to_the_same_replica(net: RouterNet) -> None:
    upstreams = [await net.upstream(answering(b"ok")) for _ in range(4)]
    router = await net.router(*upstreams, policy="prefix")
    homes: dict[int, set[bytes]] = {}
    for turn in range(4):
        for conversation in range(8):
            _, headers, _ = await net.ask(router, _chat(conversation, turn))
            homes.setdefault(conversation, set()).add(headers[b"x-bul-replica"])
    assert all(len(found) == 1 for found in homes.values())
    assert len({home for found in homes.values() for home in found}) == 4


async def test_least_conn_spreads_the_turns_of_a_conversation(net: RouterNet) -> None:
    """The control of the one above."""
    upstreams = [await net.upstream(answering(b"ok")) for _ in range(4)]
    router = await net.router(*upstreams, policy="least_conn")
    homes = {(await net.ask(router, _chat(1, turn)))[1][b"x-bul-replica"] for turn in range(4)}
    assert len(homes) == 4


async def test_a_replica_that_went_down_is_believed_to_hold_nothing(net: RouterNet) -> None:
    upstreams = [await net.upstream(answering(b"ok")) for _ in range(2)]
    router = await net.router(*upstreams, policy="prefix")
    await net.ask(router, _chat(1, 1))
    home = next(replica for replica in router.replicas if replica.requests)
    assert len(home.residency) > 0
    home.set_state("down")
    assert len(home.residency) == 0
