"""The policy `prefix` in front of `bul serve` processes: the next turn finds what the last left."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bul.router.app import Router
from bul.testing.replica_set import ReplicaSet
from bul.testing.router_net import RouterNet, post

INSTANT = {"BUL_TIMED_TIME_SCALE": "0", "BUL_CACHE_ENABLE_PERSISTENCE": "false"}
CONVERSATIONS = 4
TURNS = 3
TALK = "word " * 200


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[list[str]]:
    async with contextlib.AsyncExitStack() as stack:
        started = ReplicaSet(tmp_path, stack, INSTANT)
        await started.start("a", "b")
        yield started.urls


async def _turn(
    net: RouterNet, router: Router, messages: list[dict[str, str]], *, stream: bool
) -> tuple[str, str, int]:
    """Of one turn: the reply, the replica that gave it, and the cached tokens."""
    body = {"model": "bul-timed", "messages": messages, "max_tokens": 4, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    status, headers, data = await net.ask(router, post(json.dumps(body).encode()))
    assert status == 200
    lines = data.split(b"\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    if not stream:
        events = [json.loads(data)]
    texts = [_text(choice) for event in events for choice in event["choices"]]
    cached = events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"]
    return "".join(texts), headers[b"x-bul-replica"].decode(), cached


def _text(choice: dict[str, Any]) -> str:
    part: dict[str, str] = choice.get("delta") or choice.get("message") or {}
    return part.get("content", "")


async def _play(net: RouterNet, router: Router) -> tuple[dict[int, set[str]], int]:
    """Play all conversations, a turn of each at a time, every second one as a stream.

    Returns which replicas each conversation saw, and the cached tokens of all turns but the first.
    """
    talks: list[list[dict[str, str]]] = [[] for _ in range(CONVERSATIONS)]
    seen: dict[int, set[str]] = {number: set() for number in range(CONVERSATIONS)}
    cached_tokens = 0
    for turn in range(TURNS):
        # An odd way round each time, so that taking turns does not happen to be faithful.
        for number in sorted(range(CONVERSATIONS), key=lambda n: (n + turn) % CONVERSATIONS):
            talk = talks[number]
            talk.append({"role": "user", "content": f"{number} {turn} {TALK}"})
            reply, replica, cached = await _turn(net, router, talk, stream=number % 2 == 1)
            assert reply
            talk.append({"role": "assistant", "content": reply})
            seen[number].add(replica)
            cached_tokens += cached if turn else 0
    return seen, cached_tokens


@pytest.mark.slow
async def test_every_turn_of_a_conversation_lands_where_its_prefix_lies(
    net: RouterNet, replicas: list[str]
) -> None:
    router = await net.router(*replicas, policy="prefix")
    seen, cached_tokens = await _play(net, router)
    assert [len(found) for found in seen.values()] == [1] * CONVERSATIONS
    assert len(set.union(*seen.values())) == 2
    later_turns = CONVERSATIONS * (TURNS - 1)
    assert cached_tokens >= later_turns * 192


@pytest.mark.slow
async def test_the_control_taking_turns_finds_less(net: RouterNet, replicas: list[str]) -> None:
    router = await net.router(*replicas, policy="round_robin")
    _, taking_turns = await _play(net, router)
    later_turns = CONVERSATIONS * (TURNS - 1)
    assert taking_turns < later_turns * 192
