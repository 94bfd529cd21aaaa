"""/cache/stats and /cache/explain: figures for the operator, and each tenant's own prompts."""

from __future__ import annotations

import dataclasses
import json

import httpx
import pytest

from bul.accounts.keys import hash_key
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.config import ServeConfig
from bul.inference.timed import TimedCore
from bul.service.cache_pages import Explainer
from bul.testing.replica import INSTANT, ReplicaUnderTest, running_replica
from bul.testing.waiting import eventually, until

MODEL = "bul-timed"
PROMPT = "word" * 200


async def ask(client: httpx.AsyncClient, prompt: str = PROMPT) -> None:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 1}
    assert (await client.post("/v1/completions", json=body)).status_code == 200


async def explain(client: httpx.AsyncClient, **body: object) -> httpx.Response:
    return await client.post("/cache/explain", json={"model": MODEL, **body})


async def test_stats_are_the_engine_s_own(
    replica: ReplicaUnderTest, client: httpx.AsyncClient
) -> None:
    await ask(client)
    # The runner releases its match, and with it counts, just after the answer has gone out.
    await until(lambda: replica.cache.stats()["engine"]["matches_alive"] == 0)
    found = (await client.get("/cache/stats")).json()
    assert found["parts"]["ram"]["blocks"] == 3
    assert set(found["parts"]) == set(replica.cache.stats())
    assert found["classes"]["interactive"]["asked_tokens_total"] == 192


async def test_a_prompt_is_explained_before_and_after_it_was_asked(
    client: httpx.AsyncClient,
) -> None:
    before = (await explain(client, prompt=PROMPT)).json()
    assert (before["cached"], before["broken_at"], before["blocks"]) == (0, 0, 3)
    assert "never stored" in before["reasons"][0]
    await ask(client)

    async def is_kept() -> bool:  # the answer may be read before its blocks are set
        return bool((await explain(client, prompt=PROMPT)).json()["cached"])

    await eventually("its blocks are kept", is_kept)
    after = (await explain(client, prompt=PROMPT)).json()
    assert (after["cached"], after["broken_at"], after["tiers"]) == (3, None, {"ram": 3})


async def test_a_chat_is_explained_as_a_chat(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 1}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200

    async def is_kept() -> bool:
        return bool((await explain(client, messages=messages)).json()["cached"])

    await eventually("its blocks are kept", is_kept)
    chat = (await explain(client, messages=messages)).json()
    assert chat["cached"] == chat["blocks"] > 0
    assert (await explain(client, prompt=PROMPT)).json()["cached"] == 0


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": ["a", "b"]}, {"prompt": ""}, {"messages": []}, {"prompt": "a", "nope": 1}],
)
async def test_a_bad_question_is_a_400(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    assert (await explain(client, **body)).status_code == 400


async def test_another_model_is_a_404(client: httpx.AsyncClient) -> None:
    answer = await client.post("/cache/explain", json={"model": "other", "prompt": "a"})
    assert answer.status_code == 404


@pytest.mark.security
async def test_nobody_learns_about_another_tenant_s_blocks() -> None:
    keys = {name: f"bul-{name}" for name in ("operator", "ana", "ben")}
    hashes = {name: hash_key(key) for name, key in keys.items()}
    async with running_replica(keys=hashes) as replica:
        url = replica.url

        def client(name: str) -> httpx.AsyncClient:
            return httpx.AsyncClient(
                base_url=url, headers={"Authorization": f"Bearer {keys[name]}"}
            )

        async with client("ana") as ana, client("ben") as ben, client("operator") as operator:
            await ask(ana)
            assert (await explain(ana, prompt=PROMPT)).json()["cached"] == 3
            assert (await explain(ben, prompt=PROMPT)).json()["cached"] == 0
            assert (await explain(operator, prompt=PROMPT)).json()["cached"] == 0
            assert (await ana.get("/cache/stats")).status_code == 403
            assert (await operator.get("/cache/stats")).status_code == 200
            metrics = (await operator.get("/metrics")).text
        async with httpx.AsyncClient(base_url=url) as nobody:
            assert (await explain(nobody, prompt=PROMPT)).status_code == 401
            assert (await nobody.get("/cache/stats")).status_code == 401
    assert 'bul_tenant_prompt_tokens_total{tenant_class="keyed"} 200.0' in metrics
    assert '"ana"' not in metrics


def test_only_who_may_see_totals_hears_of_other_identities() -> None:
    core = TimedCore(ServeConfig(), INSTANT)
    theirs = {**dataclasses.asdict(core.identity), "weights": "other", "digest": "00"}
    ours = {**dataclasses.asdict(core.identity), "digest": core.identity.digest().hex()}
    engine = UltraAdaptiveKVCacheEngine(identity=core.identity)
    explainer = Explainer(cache=engine, core=core, identities=lambda: [ours, theirs])
    told, untold = (
        json.loads(explainer.explain(range(64), b"", identities=may)) for may in (True, False)
    )
    assert len(untold["reasons"]) == 1
    (reason,) = told["reasons"][1:]
    assert "weights is" in reason
    assert "there 'other'" in reason
    engine.close()
    core.close()
