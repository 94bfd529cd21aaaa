"""What a replica's traces tell, from the request to the tiers; and what they must never tell."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from bul.config import KVCacheConfig, ServeConfig
from bul.inference.timed import TimedCore
from bul.testing.replica import INSTANT, ReplicaUnderTest, running_replica
from bul.testing.tiers import Fault, FaultyTier, MemoryTier
from bul.testing.waiting import until
from bul.tracing import Span, Tracer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"
CANARY = "canary-3f1d"
PROMPT = "word " * 60
BODY: dict[str, Any] = {"model": "bul-timed", "prompt": PROMPT, "max_tokens": 3}


class Traced:
    """A replica, a client and every span that has ended."""

    def __init__(self, replica: ReplicaUnderTest, client: httpx.AsyncClient) -> None:
        self.replica = replica
        self.client = client
        self.spans: list[Span] = []

    async def ask(self, traceparent: str = GOOD, **changes: Any) -> httpx.Response:
        headers = {"traceparent": traceparent} if traceparent else {}
        return await self.client.post("/v1/completions", json=BODY | changes, headers=headers)

    async def settled(self) -> dict[str, list[Span]]:
        """By name, once everything of the last request has been told; then forgotten."""
        await until(lambda: any(s.name == "bul.engine.decode" for s in self.spans))
        await until(lambda: any(s.name == "bul.replica.request" for s in self.spans))
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            found.setdefault(span.name, []).append(span)
        self.spans.clear()
        return found


@contextlib.asynccontextmanager
async def traced(*tiers: Any, share: float = 0.0, **options: Any) -> AsyncIterator[Traced]:
    spans: list[Span] = []
    tracer = Tracer(spans.append, sample_share=share)
    async with (
        running_replica(tiers=tiers, tracer=tracer, **options) as replica,
        httpx.AsyncClient(base_url=replica.url, trust_env=False) as client,
    ):
        found = Traced(replica, client)
        found.spans = spans
        yield found


async def test_the_work_of_a_request_is_told_step_by_step() -> None:
    async with traced() as at:
        answer = await at.ask()
        found = await at.settled()
    [request] = found["bul.replica.request"]
    assert (request.trace_hex, f"{request.parent_id:016x}") == (TRACE, PARENT)
    assert request.attributes["bul.request_id"] == answer.headers["x-request-id"]
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["gen_ai.usage.output_tokens"] == 3
    steps = ["queue", "import", "prefill", "decode"]
    engine = [found[f"bul.engine.{step}"][0] for step in steps]
    assert [span.parent_id for span in engine] == [request.span_id] * 4
    for before, after in itertools.pairwise(engine):
        assert before.end_s == after.start_s
    tokens = request.attributes["gen_ai.usage.input_tokens"]
    assert found["bul.engine.prefill"][0].attributes["bul.computed_tokens"] == tokens
    [match] = found["bul.cache.match"]
    assert (match.parent_id, match.attributes["bul.cached_tokens"]) == (request.span_id, 0)
    [store] = found["bul.cache.store"]
    assert store.attributes["bul.blocks"] == int(tokens) // 64
    assert {span.trace_id for spans in found.values() for span in spans} == {request.trace_id}


async def test_what_ram_gives_and_what_a_tier_gives_are_told_apart() -> None:
    tier = MemoryTier("disk")
    async with traced(tier) as at:
        await at.ask()
        assert at.replica.cache.flush()
        await at.settled()
        await at.ask()
        [match] = (await at.settled())["bul.cache.match"]
        tokens = int(match.attributes["bul.asked_tokens"])
        assert match.attributes["bul.ram_tokens"] == tokens > 0
        at.replica.cache.clear_ram()
        await at.ask()
        found = await at.settled()
    [match], [load] = found["bul.cache.match"], found["bul.cache.load"]
    assert match.attributes["bul.ram_tokens"] == 0
    assert match.attributes["bul.cached_tokens"] == tokens
    assert load.parent_id == match.span_id
    size = tokens // 64 * INSTANT.block_bytes
    assert load.attributes == {
        "bul.tier": "disk",
        "bul.asked_blocks": tokens // 64,
        "bul.blocks": tokens // 64,
        "bul.bytes": size,
        "bul.outcome": "hit",
    }


async def test_a_second_tier_is_asked_for_what_the_first_has_not() -> None:
    async with traced(MemoryTier("disk"), MemoryTier("shared")) as at:
        await at.ask()
        loads = (await at.settled())["bul.cache.load"]
    told = [(s.attributes["bul.tier"], s.attributes["bul.outcome"], s.error) for s in loads]
    assert told == [("disk", "miss", ""), ("shared", "miss", "")]


async def test_a_tier_that_fails_or_hangs_is_told_and_the_request_is_not_hurt() -> None:
    faults = [Fault(error=OSError(CANARY))]
    tier = FaultyTier(
        MemoryTier("disk"), lambda method: faults[-1] if method == "match" else Fault()
    )
    config = KVCacheConfig(tier_deadline_s=0.2)
    async with traced(tier, cache_config=config) as at:
        assert (await at.ask()).status_code == 200
        [load] = (await at.settled())["bul.cache.load"]
        assert (load.attributes["bul.outcome"], load.error) == ("unavailable", "unavailable")
        faults.append(Fault(hang=True))
        assert (await at.ask(prompt="other " * 60)).status_code == 200
        [load] = (await at.settled())["bul.cache.load"]
        assert (load.attributes["bul.outcome"], load.error) == ("timed_out", "timed_out")
        assert (await at.ask(prompt="third " * 60)).status_code == 200
        [match] = (await at.settled())["bul.cache.match"]
        assert [(name, said) for _, name, said in match.events] == [
            ("tier_skipped", {"bul.tier": "disk"})
        ]
        tier.unhang()


async def test_what_is_not_sampled_is_not_told() -> None:
    async with traced() as at:
        assert (await at.ask(GOOD[:-2] + "00")).status_code == 200
        assert (await at.ask("")).status_code == 200
        assert (await at.ask("garbage")).status_code == 200
        assert (await at.client.get("/health", headers={"traceparent": GOOD})).status_code == 200
        assert at.spans == []
        await at.ask()  # the control
        assert await at.settled()


async def test_a_bad_request_is_told_by_its_code() -> None:
    async with traced(share=1.0) as at:
        assert (await at.ask("", model=CANARY)).status_code == 404
        assert (await at.ask("", prompt=[[CANARY]])).status_code == 400
        first, second = at.spans
    assert (first.error, first.attributes["http.response.status_code"]) == ("model_not_found", 404)
    assert second.attributes["http.response.status_code"] == 400
    assert CANARY not in repr([(s.attributes, s.error) for s in (first, second)])


class _Broken(TimedCore):
    def prefill(self, slot: int, tokens: Any, position: int) -> None:
        raise RuntimeError(CANARY)


async def test_a_failure_names_its_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    core = _Broken(ServeConfig(port=0), INSTANT)
    with caplog.at_level(logging.ERROR):
        async with traced(core=core) as at:
            assert (await at.ask()).status_code == 500
            assert (await at.ask(GOOD[:-2] + "00")).status_code == 500
            await until(lambda: any(s.name == "bul.engine.prefill" for s in at.spans))
    said = [record.getMessage() for record in caplog.records]
    assert [f"(trace_id {TRACE}) failed" in line for line in said] == [True, True]
    [prefill] = [span for span in at.spans if span.name == "bul.engine.prefill"]
    assert prefill.error == "given up"


async def test_a_client_that_leaves_ends_its_trace() -> None:
    slow = ServeConfig(port=0)
    timed = type(INSTANT)(decode_tokens_per_s=5.0, block_bytes=256)
    async with traced(serve=slow, timed=timed) as at:
        with contextlib.suppress(httpx.ReadTimeout):
            await at.client.post(
                "/v1/completions",
                json=BODY | {"max_tokens": 50},
                headers={"traceparent": GOOD},
                timeout=0.2,
            )
        found = await at.settled()
    assert found["bul.replica.request"][0].error == "the client left"


def _said(spans: dict[str, list[Span]]) -> str:
    return repr([(s.name, s.attributes, s.events, s.error) for of in spans.values() for s in of])


@pytest.mark.security
@pytest.mark.parametrize("stream", [False, True])
async def test_no_text_no_token_and_no_key_of_a_request_is_told(*, stream: bool) -> None:
    async with traced(MemoryTier("disk")) as at:
        prompt = CANARY * 40
        await at.ask(prompt=prompt, stream=stream, stop=[CANARY], user=CANARY)
        found = await at.settled()
        [keys] = [set(at.replica.cache._resident.entries)]
    told = _said(found)
    assert CANARY not in told
    assert keys
    assert not any(key.hex()[:12] in told for key in keys)


def test_the_test_of_the_canary_would_notice() -> None:
    """The control."""
    spans: list[Span] = []
    tell: Callable[[Span], None] = spans.append
    span = Tracer(tell, sample_share=1.0).start("request")
    span.set({"prompt": CANARY})
    span.end()
    assert CANARY in _said({"request": spans})
