import logging

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bul.accounts.keys import hash_key
from bul.metrics.snapshot import SIGNAL_NAMES
from bul.testing.replica import running_replica

MODEL = "bul-timed"


async def samples(client: httpx.AsyncClient) -> dict[str, float]:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        " ".join(
            [sample.name, *(sample.labels[name] for name in sorted(sample.labels))]
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_metrics_parse_and_count_what_happened(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": "word" * 200, "max_tokens": 3}
    for _ in range(2):
        await client.post("/v1/completions", json=body)
    await client.post("/v1/completions", json=body | {"n": 99})
    found = await samples(client)
    assert found["bul_requests_total 200 /v1/completions"] == 2
    assert found["bul_requests_total 400 /v1/completions"] == 1
    assert found["bul_prompt_tokens_total"] == 400
    assert found["bul_prompt_tokens_cached_total"] == 192
    assert found["bul_output_tokens_total"] == 6
    assert found["bul_time_to_first_token_seconds_count"] == 2
    assert found["bul_inter_token_latency_seconds_count"] == 4
    assert found["bul_request_duration_seconds_count"] == 2
    assert found["bul_cache_tier_blocks ram"] == 3
    assert found["bul_slots"] == 4
    assert found["bul_ready"] == 1


async def test_paths_and_methods_of_clients_make_no_new_series(client: httpx.AsyncClient) -> None:
    for number in range(20):
        await client.get(f"/nothing-{number}")
        await client.get(f"/v1/models/nobody-{number}")
    found = [name for name in await samples(client) if name.startswith("bul_requests_total")]
    assert sorted(found) == [
        "bul_requests_total 404 /v1/models/{id}",
        "bul_requests_total 404 other",
    ]


async def test_signals_have_the_seven_keys(client: httpx.AsyncClient) -> None:
    empty = (await client.get("/signals")).json()
    assert tuple(empty) == SIGNAL_NAMES
    assert empty["p95_latency"] is None
    assert empty["cache_hit_rate"] is None
    await client.post("/v1/completions", json={"model": MODEL, "prompt": "word" * 200})
    full = (await client.get("/signals")).json()
    assert full["p95_latency"] > 0
    assert full["cache_hit_rate"] == 0
    assert full["error_rate"] == 0
    assert full["active_connections"] == 1


@pytest.mark.security
async def test_prompts_and_keys_are_in_no_log_and_no_metric(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    key = "bul-CANARY-KEY"
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        running_replica(keys={"operator": hash_key(key)}) as replica,
        httpx.AsyncClient(base_url=replica.url, headers=headers) as client,
    ):
        prompt = "CANARY-PROMPT" * 20
        for fields in ({}, {"stream": True}, {"n": 99}, {"CANARY-FIELD": 1}, {"max_tokens": 4096}):
            await client.post("/v1/completions", json={"model": MODEL, "prompt": prompt} | fields)
        await client.post("/v1/completions", json={"model": "CANARY-MODEL", "prompt": prompt})
        await client.get("/CANARY-PATH?CANARY-QUERY")
        await client.get("/v1/models", headers={"Authorization": "Bearer CANARY-WRONG"})
        metrics = (await client.get("/metrics")).text
        signals = (await client.get("/signals")).text
    own = [record for record in caplog.records if not record.name.startswith(("http", "hpack"))]
    logged = "\n".join(record.getMessage() for record in own)
    assert "CANARY" not in metrics + signals + logged
    assert hash_key(key) not in metrics + signals + logged
