"""The policy `session`: one client's requests stay together, whoever leaves; and who decided."""

from __future__ import annotations

import collections
import json
from typing import Any

import pytest

from bul.router.http1 import Request
from bul.router.prompt import NO_PROMPT, session_of
from bul.router.route import pick, score_session
from bul.testing.router_net import CHAT, RouterNet, post
from bul.testing.upstreams import answering, raw, silent, streaming
from bul.testing.waiting import until

NAMES = [b"10.0.0.%d:8002" % number for number in range(5)]


def _home(session: bytes, names: list[bytes]) -> bytes:
    return names[pick(score_session(session, names), 0)]


def test_a_replica_that_goes_takes_only_its_own_sessions_with_it() -> None:
    sessions = [b"s%d" % number for number in range(1000)]
    before = {session: _home(session, NAMES) for session in sessions}
    after = {session: _home(session, NAMES[:-1]) for session in sessions}
    moved = [session for session in sessions if before[session] != after[session]]
    assert moved == [session for session in sessions if before[session] == NAMES[-1]]
    assert {session: _home(session, NAMES) for session in sessions} == before


def test_a_hash_modulo_the_replicas_would_move_most_sessions() -> None:
    """The control of the one above."""
    moved = [n for n in range(1000) if n % len(NAMES) != n % (len(NAMES) - 1)]
    assert len(moved) > 700


def test_sessions_are_spread_evenly() -> None:
    homes = collections.Counter(_home(b"session-%d" % number, NAMES) for number in range(5000))
    assert max(homes.values()) / (5000 / len(NAMES)) < 1.1
    assert all(0 <= score < 1 for score in score_session(b"x", NAMES))


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], b""),
        ([b"X-Session-Id: a1 \r\n"], b"a1"),
        ([b"Cookie: other=1; bul-session=b2\r\n"], b"b2"),
        ([b'Cookie: bul-session="b3"; other=1\r\n'], b"b3"),
        ([b"Cookie: bul-session=no\r\n", b"x-session-id: yes\r\n"], b"yes"),
        ([b"Cookie: xbul-session=b2\r\n"], b""),
        ([b"X-Session-Id: " + b"a" * 1000 + b"\r\n"], b"a" * 256),
    ],
)
def test_the_header_names_the_session_and_else_the_cookie(lines: list[bytes], found: bytes) -> None:
    request = Request(b"POST", b"/", http10=False, keep_alive=True)
    request.lines = lines
    assert session_of(request, b"x-session-id", b"bul-session") == found


def test_what_is_no_prompt_has_a_session_of_its_own() -> None:
    assert NO_PROMPT.of_session(b"a").session == b"a"
    assert NO_PROMPT.session == b""


def _of(session: bytes) -> bytes:
    return post(extra=b"X-Session-Id: %b\r\n" % session)


async def test_a_session_stays_and_moves_when_its_replica_is_lost(net: RouterNet) -> None:
    upstreams = [await net.upstream(answering(b"ok")) for _ in range(4)]
    router = await net.router(*upstreams, policy="session")
    sessions = [b"s%d" % number for number in range(12)]

    async def homes() -> dict[bytes, bytes]:
        return {s: (await net.ask(router, _of(s)))[1][b"x-bul-replica"] for s in sessions}

    before = await homes()
    assert await homes() == before
    assert len(set(before.values())) > 1
    lost = next(up for up in upstreams if up.url.encode() == before[sessions[0]])
    await lost.kill()
    after = await homes()
    assert lost.url.encode() not in after.values()
    assert all(after[s] == home for s, home in before.items() if home != lost.url.encode())
    await lost.start()
    await until(lambda: len(router.ready) == 4)
    assert await homes() == before


async def test_without_a_session_the_least_loaded_gets_it(net: RouterNet) -> None:
    upstreams = [await net.upstream(answering(b"ok")) for _ in range(4)]
    router = await net.router(*upstreams, policy="session")
    homes = {(await net.ask(router, post()))[1][b"x-bul-replica"] for _ in range(4)}
    assert len(homes) == 4


@pytest.mark.parametrize("policy", ["prefix", "session", "least_conn", "round_robin"])
async def test_every_decision_is_explained_with_all_scores(net: RouterNet, policy: str) -> None:
    upstreams = [await net.upstream(answering(b"ok")) for _ in range(3)]
    router = await net.router(*upstreams, policy=policy)
    told: list[dict[str, Any]] = []
    router.judge.explain = lambda decision: told.append(json.loads(json.dumps(decision)))
    secret = "what nobody shall read " * 60
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": secret}]}).encode()
    await net.ask(router, post(body, extra=b"X-Session-Id: s-secret\r\n"))
    _, headers, _ = await net.ask(router, post(body, extra=b"X-Session-Id: s-secret\r\n"))
    last = told[-1]
    assert len(told) == 2
    assert last["policy"] == policy
    assert last["chosen"] == headers[b"x-bul-replica"].decode()
    scores = {row["url"]: row["score"] for row in last["candidates"]}
    assert scores.keys() == {upstream.url for upstream in upstreams}
    assert scores[last["chosen"]] == max(scores.values())
    assert "nobody" not in json.dumps(told)
    assert "s-secret" not in json.dumps(told)
    if policy == "prefix":
        tokens = {row["url"]: row["to_compute_tokens"] for row in last["candidates"]}
        assert tokens[last["chosen"]] < min(tokens[url] for url in tokens if url != last["chosen"])


async def test_it_says_why_a_replica_was_left_out(net: RouterNet) -> None:
    good, bad = await net.upstream(answering(b"ok")), await net.upstream(raw(b""))
    router = await net.router(good, bad, policy="round_robin")
    told: list[dict[str, Any]] = []
    router.judge.explain = lambda decision: told.append(dict(decision))
    for _ in range(2):
        await net.ask(router, post())
    why = [row for decision in told for row in decision["left_out"]]
    assert {"url": bad.url, "why": "tried"} in why


async def test_every_answer_names_its_replica(net: RouterNet) -> None:
    """Whole, streamed, an error of the replica's, one about a replica, and the router's own."""
    whole = await net.upstream(answering(b"ok"))
    router = await net.router(whole)
    assert (await net.ask(router, post()))[1][b"x-bul-replica"] == whole.url.encode()
    whole.behaviour = streaming([b"data: x\n\n"])
    assert (await net.ask(router, post()))[1][b"x-bul-replica"] == whole.url.encode()
    whole.behaviour = answering(b"no", status=b"400 Bad Request")
    assert (await net.ask(router, post()))[1][b"x-bul-replica"] == whole.url.encode()
    whole.behaviour = raw(b"garbage\r\n\r\n")
    status, headers, _ = await net.ask(router, post())
    assert (status, headers[b"x-bul-replica"]) == (502, whole.url.encode())
    for page in (b"/health", b"/ready", b"/replicas", b"/metrics"):
        _, headers, _ = await net.ask(router, b"GET %b HTTP/1.1\r\nHost: bul\r\n\r\n" % page)
        assert headers[b"x-bul-replica"] == b"none"
    _, headers, _ = await net.ask(router, b"GET / HTTP/1.1\r\n\r\n")
    assert headers[b"x-bul-replica"] == b"none"


async def test_an_answer_that_never_came_names_its_replica_too(net: RouterNet) -> None:
    quiet = await net.upstream(silent)
    router = await net.router(quiet, response_timeout_s=0.1)
    status, headers, _ = await net.ask(router, post(CHAT))
    assert (status, headers[b"x-bul-replica"]) == (504, quiet.url.encode())


async def test_no_replica_at_all_is_said(net: RouterNet) -> None:
    router = await net.router(wait=False)
    status, headers, _ = await net.ask(router, post(CHAT))
    assert (status, headers[b"x-bul-replica"]) == (503, b"none")
