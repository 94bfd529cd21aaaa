"""One request, one trace: a router process, two replica processes, a disk each, a real Valkey.

The collector is a stand-in (`bul.testing.collector`).
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bul.testing.collector import Collector, Received
from bul.testing.region_process import (
    BulProcess,
    bul_process,
    clean_environment,
    region_process,
)
from bul.testing.valkey import running_valkey
from bul.testing.waiting import eventually

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "canary-3f1d"
BODY = {"model": "bul-timed", "prompt": CANARY * 40, "max_tokens": 3, "stop": [CANARY + "!"]}
HEADERS = {"authorization": f"Bearer {CANARY}-key"}
ENGINE = ("--engine", "timed", "--time-scale", "0", "--block-bytes", "256")


def _environ(collector: Collector, share: str) -> dict[str, str]:
    return {
        "BUL_TRACING_ENDPOINT": collector.endpoint,
        "BUL_TRACING_SAMPLE_SHARE": share,
        "BUL_TRACING_INTERVAL_S": "0.02",
    }


class Fleet:
    """A router process over two replica processes, and who is told of their requests."""

    def __init__(self, router: BulProcess, replicas: list[BulProcess], told: Collector) -> None:
        self.router = router
        self.replicas = replicas
        self.told = told
        self.url = router.said("ready")[0]["url"]

    async def ask(self, traceparent: str = "", **changes: Any) -> httpx.Response:
        headers = HEADERS | ({"traceparent": traceparent} if traceparent else {})
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            body = BODY | changes
            return await client.post(f"{self.url}/v1/completions", json=body, headers=headers)

    async def trace(self, trace_id: str) -> dict[str, list[Received]]:
        """Its spans by name, once the router's and the engine's last ones have come."""
        last = ("bul.router.request", "bul.replica.request", "bul.engine.decode")
        await eventually(
            f"trace {trace_id} has come",
            lambda: all(self.told.named(name, trace_id) for name in last),
        )
        found: dict[str, list[Received]] = {}
        for span in self.told.spans:
            if span.trace_id == trace_id:
                found.setdefault(span.name, []).append(span)
        return {name: sorted(spans, key=lambda s: s.start_ns) for name, spans in found.items()}

    async def written(self, replica: str) -> None:
        """Until what that replica has stored is in Valkey."""
        async with httpx.AsyncClient(trust_env=False) as client:

            async def done() -> bool:
                shared = (await client.get(f"{replica}/cache/stats")).json()["parts"]["shared"]
                return bool(shared["queue_written_blocks_total"] and not shared["queue_bytes"])

            await eventually("it is in Valkey", done)


@contextlib.asynccontextmanager
async def _fleet(folder: Path, share: str) -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as stack:
        told = await stack.enter_async_context(Collector())
        valkey = stack.enter_context(running_valkey(folder / "valkey"))
        environ = _environ(told, share) | {
            "BUL_CACHE_SHARED_URL": valkey.url,
            "BUL_CACHE_ENABLE_PERSISTENCE": "true",
            "BUL_CACHE_BREAK_EVEN": "false",  # the timed engine computes in no time
        }
        replicas = []
        for number in range(2):
            disk = str(folder / f"disk{number}")
            serve = ["serve", *ENGINE, "--port", "0", "--log-format", "json"]
            command = [*serve, "--persistence-dir", disk]
            replicas.append(await stack.enter_async_context(bul_process(command, folder, environ)))
        urls = [(await replica.wait_for("ready"))["url"] for replica in replicas]
        route = ["route", "--port", "0", "--policy", "round_robin", "--explain"]
        route += ["--log-format", "json", "--replica", urls[0], "--replica", urls[1]]
        route += ["--probe-interval-s", "60"]  # else a dead one is found before a request is lost
        router = await stack.enter_async_context(bul_process(route, folder, _environ(told, share)))
        url = (await router.wait_for("ready"))["url"]
        async with httpx.AsyncClient(trust_env=False) as client:

            async def both() -> bool:
                ready = (await client.get(f"{url}/ready")).json()
                return bool(ready.get("replicas") == 2)

            await eventually("both replicas are ready", both)
        yield Fleet(router, replicas, told)


def _within(child: Received, parent: Received) -> None:
    assert (child.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)


def _outcomes(found: dict[str, list[Received]]) -> list[tuple[str, str]]:
    loads = found["bul.cache.load"]
    return [(load.attributes["bul.tier"], load.attributes["bul.outcome"]) for load in loads]


async def _goes_from_router_to_tiers(fleet: Fleet) -> None:
    first, second = f"{1:032x}", f"{2:032x}"
    assert (await fleet.ask(f"00-{first}-{PARENT}-01")).status_code == 200
    found = await fleet.trace(first)
    assert _outcomes(found) == [("disk", "miss"), ("shared", "miss")]
    await fleet.written(found["bul.router.try"][0].attributes["bul.replica"])
    assert (await fleet.ask(f"00-{second}-{PARENT}-01")).status_code == 200
    found = await fleet.trace(second)

    [request], [one] = found["bul.router.request"], found["bul.router.try"]
    [replica], [match] = found["bul.replica.request"], found["bul.cache.match"]
    assert (request.service, replica.service) == ("bul-router", "bul-replica")
    assert request.parent_id == PARENT
    _within(one, request)
    _within(replica, one)
    _within(match, replica)
    for step in ("queue", "import", "prefill", "decode"):
        _within(found[f"bul.engine.{step}"][0], replica)
    assert _outcomes(found) == [("disk", "miss"), ("shared", "hit")]
    shared = found["bul.cache.load"][1]
    _within(shared, match)
    assert shared.attributes["bul.bytes"] == 256 * shared.attributes["bul.blocks"] > 0
    assert match.attributes["bul.cached_tokens"] == 64 * shared.attributes["bul.blocks"]
    assert request.start_ns <= one.start_ns <= request.end_ns


async def _shows_both_tries_when_a_replica_is_gone(fleet: Fleet) -> None:
    fleet.replicas[0].send(signal.SIGKILL)
    await fleet.replicas[0].ended()
    ids = [f"{number:032x}" for number in (11, 12)]
    for trace_id in ids:  # one of them goes to the dead one first
        assert (await fleet.ask(f"00-{trace_id}-{PARENT}-01")).status_code == 200
    traces = [await fleet.trace(trace_id) for trace_id in ids]
    [twice] = [trace for trace in traces if len(trace["bul.router.try"]) == 2]
    lost, good = twice["bul.router.try"]
    assert (lost.attributes["bul.try"], good.attributes["bul.try"]) == ("first", "retry")
    assert (lost.error != "", good.error) == (True, "")
    _within(twice["bul.replica.request"][0], good)


async def _names_what_is_not_sampled_in_the_log_alone(fleet: Fleet) -> None:
    before = len({span.trace_id for span in fleet.told.spans})
    for traceparent in ("", f"00-{TRACE}-{PARENT}-00"):
        assert (await fleet.ask(traceparent)).status_code == 200
    await eventually("it is named", lambda: TRACE in fleet.router.errors)
    await fleet.router.close()  # both send what they have before they end
    await fleet.replicas[1].close()
    assert len({span.trace_id for span in fleet.told.spans}) == before
    assert all('"trace_id":"' in line for line in fleet.router.errors.splitlines())


@pytest.mark.slow
@pytest.mark.security
async def test_one_request_is_one_trace_and_holds_no_word_of_it(tmp_path: Path) -> None:
    async with _fleet(tmp_path, share="0") as fleet:
        await _goes_from_router_to_tiers(fleet)
        await _shows_both_tries_when_a_replica_is_gone(fleet)
        await _names_what_is_not_sampled_in_the_log_alone(fleet)
        told = fleet.told.raw
    for secret in (CANARY, hashlib.sha256(f"{CANARY}-key".encode()).hexdigest(), "a%20secret"):
        assert secret.encode() not in told
    assert b"bul.router.request" in told  # the control: names do show in what was sent


@pytest.mark.slow
async def test_a_whole_region_is_traced_and_counts_its_spans(tmp_path: Path) -> None:
    async with Collector() as told:
        environ = _environ(told, share="1")
        environ |= {"BUL_TIMED_TIME_SCALE": "0"}
        async with region_process(tmp_path, "--replicas", "1", environ=environ) as region:
            url = (await region.wait_for("ready"))["url"]
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.post(f"{url}/v1/completions", json=BODY)
                assert answer.status_code == 200
                await eventually("it is told", lambda: bool(told.named("bul.router.request")))
                [request] = told.named("bul.router.request")
                traced = request.trace_id
                await eventually("both", lambda: bool(told.named("bul.engine.decode", traced)))

                async def counted() -> bool:
                    text = (await client.get(f"{url}/metrics")).text
                    return "bul_trace_spans_sent_total 2" in text

                await eventually("the router's two spans are counted", counted)


def _python(*arguments: str, environ: dict[str, str], folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean_environment(environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command", [["serve", "--engine", "timed"], ["route", "--members"], ["up"]]
)
def test_asked_for_without_the_extra_it_names_the_next_step(
    tmp_path: Path, command: list[str]
) -> None:
    hidden = tmp_path / "hides" / "opentelemetry"  # a package without what is in the real one
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").touch()
    environ = {
        "PYTHONPATH": str(hidden.parent),
        "BUL_TRACING_ENDPOINT": "http://127.0.0.1:4318/v1/traces",
        "BUL_SERVE_ENGINE": "timed",
    }
    code, said = _python("-m", "bul", *command, "--port", "0", environ=environ, folder=tmp_path)
    assert code == 2, said
    assert "pip install 'bul[tracing]'" in said


NOT_LOADED = """
import sys
from bul.cli.route import make_router
from bul.cli.tracing import tracing
from bul.config import Settings
with tracing(Settings(), "router") as traces:
    router = make_router(Settings(), {}, traces)
assert router.tracer is None and traces.stats() == {} and router.more_metrics() == ""
print([name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "google")])
"""


def test_without_tracing_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    code, said = _python("-c", NOT_LOADED, environ={}, folder=tmp_path)
    assert (code, said.strip()) == (0, "[]")
