"""A replica takes up a stream that a router has sealed, and nothing that anybody else says."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from bul.accounts.keys import hash_key
from bul.inference.resume import HEADER, OFFER, Sent, seal
from bul.testing.replica import ReplicaUnderTest, running_replica

PATH = "/v1/chat/completions"
NAME = HEADER.decode()
CHAT: dict[str, Any] = {
    "model": "bul-timed",
    "messages": [{"role": "user", "content": "go on"}],
    "max_tokens": 12,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}


def _events(body: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def _whole(client: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    headers = {NAME: OFFER.decode()}
    return _events((await client.post(PATH, json=CHAT | more, headers=headers)).content)


async def _resume(
    client: httpx.AsyncClient, sent: Sent, *, secret: str = "", key: str = "", **more: Any
) -> httpx.Response:
    authorization = f"Bearer {key}" if key else ""
    mac, body = seal(
        secret,
        sent,
        target=PATH.encode(),
        authorization=authorization.encode(),
        body=json.dumps(CHAT | more).encode(),
    )
    headers = {NAME: mac.decode()} | ({"authorization": authorization} if key else {})
    return await client.post(PATH, content=body, headers=headers)


def _sent(events: list[dict[str, Any]]) -> Sent:
    tokens = [token for event in events for token in event.get("bul", {}).get("tokens", ())]
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
    return Sent(
        id=events[0]["id"],
        created=events[0]["created"],
        tokens=tokens,
        finish_reason=next(filter(None, reasons), None),
    )


async def test_the_rest_of_a_stream_are_the_events_that_were_missing(
    client: httpx.AsyncClient,
) -> None:
    whole = await _whole(client)
    for cut in range(1, len(whole)):
        answer = await _resume(client, _sent(whole[:cut]))
        rest = _events(answer.content)
        assert answer.headers[NAME] == "tokens"
        for event in (*whole, *rest):
            event.get("bul", {}).pop("ttft_ms", None)
            event.get("bul", {}).pop("e2e_ms", None)
        assert rest == whole[cut:]


async def test_only_offered_streams_say_their_tokens(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, json=CHAT)
    assert NAME not in answer.headers
    assert b'tokens":[' not in answer.content
    assert b'tokens":[' in (await client.post(PATH, json=CHAT, headers={NAME: "offer"})).content


@pytest.mark.parametrize(
    "more",
    [{"temperature": 1.0}, {"n": 2}, {"stream": False, "stream_options": None}],
)
async def test_what_nobody_can_continue_is_refused(
    client: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    answer = await _resume(client, Sent(id="x", created=1, tokens=[1]), **more)
    assert answer.status_code == 400


@pytest.mark.security
async def test_a_seal_by_anybody_else_opens_nothing() -> None:
    keys = {"alice": hash_key("bul-a")}
    sent = Sent(id="x", created=1, tokens=[1, 2])
    async with (
        running_replica(keys=keys, resume_secret="right") as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        for secret in ("", "wrong"):
            answer = await _resume(client, sent, secret=secret, key="bul-a")
            assert answer.status_code == 403
        answer = await _resume(client, sent, secret="right", key="bul-a")  # the control
        assert answer.status_code == 200


@pytest.mark.security
async def test_with_keys_and_without_a_secret_no_seal_is_believed() -> None:
    async with (
        running_replica(keys={"alice": hash_key("bul-a")}) as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        answer = await _resume(client, Sent(tokens=[1]), key="bul-a")
        assert answer.status_code == 403


@pytest.mark.security
@pytest.mark.parametrize("part", ["body", "path", "key"])
async def test_a_seal_is_for_one_request_alone(replica: ReplicaUnderTest, part: str) -> None:
    mac, body = seal(
        "",
        Sent(tokens=[1]),
        target=PATH.encode(),
        authorization=b"",
        body=json.dumps(CHAT).encode(),
    )
    headers = {NAME: mac.decode()}
    path = PATH
    if part == "body":
        body = body.replace(b"go on", b"go in")
    elif part == "path":
        path = "/v1/completions"
    else:
        headers["authorization"] = "Bearer other"
    async with httpx.AsyncClient(base_url=replica.url) as client:
        assert (await client.post(path, content=body, headers=headers)).status_code == 403


async def test_resumed_tokens_are_counted_by_the_replica_that_made_them(
    replica: ReplicaUnderTest, client: httpx.AsyncClient
) -> None:
    whole = await _whole(client)
    before = (await client.get("/metrics")).text
    await _resume(client, _sent(whole[:5]))
    after = (await client.get("/metrics")).text

    def generated(page: str) -> float:
        [line] = [x for x in page.splitlines() if x.startswith("bul_output_tokens_total")]
        return float(line.split()[-1])

    assert generated(after) - generated(before) == CHAT["max_tokens"] - len(_sent(whole[:5]).tokens)
