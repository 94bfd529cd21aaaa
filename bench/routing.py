"""Where requests go: cached-token share, first tokens and balance, by routing policy.

    make bench-routing                        about nine minutes; bench/out/routing.json
    .venv/bin/python bench/routing.py --live  the live part alone

`moon_conv` whole over 4 and 16 simulated replicas by the production `route.py` and eviction code,
with and without block events; `of_one` is the cached-token share against one replica with the
summed cache. Four replicas get the trace four times as slowly, as they could not serve it else. A
hot trace: 80 % of the requests share one prefix. The live part plays the trace's first requests,
all lengths an eighth, over four `bul serve --engine timed` processes behind `bul route`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bul.bench.client import Client, Sample, parse_target
from bul.bench.load import Limits, run_load
from bul.bench.workload import from_trace
from bul.cache.eviction.make import make_policy
from bul.cache.replay import replay
from bul.cache.replay_trace import Trace, TraceRequest, read_trace
from bul.simulator.fleet import simulate_region
from bul.testing.region_process import bul_process
from bul.testing.replica_set import ReplicaSet

ROOT = Path(__file__).resolve().parent.parent
TRACE = ROOT.parent / "shared" / "data" / "moon_conv.jsonl.gz"
OUT = ROOT / "bench" / "out" / "routing.json"
CAPACITY_BLOCKS = 3125
"""Of one replica: 1.6 million tokens, so that 16 of them keep what an unbounded cache would."""
FLEETS = ((4, 4.0), (16, 1.0))
LIVE_CACHE_TOKENS = 1 << 20
"""Of all replicas together, however many."""
POLICIES = ("prefix", "prefix-blind", "least_conn", "round_robin")
LIVE_REQUESTS, LIVE_TIME, LIVE_LENGTH = 1500, 0.2, 0.125
"""Blocks of 64 tokens, 15 requests a second of 1,700 tokens; fewer requests share too little."""
LIVE = {
    "BUL_TIMED_PREFILL_TOKENS_PER_S": "24000",
    "BUL_TIMED_DECODE_TOKENS_PER_S": "400",
    "BUL_TIMED_BLOCK_BYTES": "1024",
    "BUL_SERVE_CONTEXT_TOKENS": "32768",
    "BUL_SERVE_SLOTS": "8",
    "BUL_ROUTE_QUEUE_DEADLINE_S": "30",
}
"""Beside replies, prompts are computed at half of that rate; `least_conn` keeps four replicas busy
for nearly half of the time."""
AT_ONCE = {"BUL_TIMED_TIME_SCALE": "0.02", "BUL_SERVE_SLOTS": "32"}
"""Of the one replica that all are held against: its answers take no time, only its cache counts."""
LIVE_ORDER = ("prefix", "least_conn", "least_conn", "prefix")


def slower(trace: Trace, times: float) -> Trace:
    requests = [dataclasses.replace(one, at_s=one.at_s * times) for one in trace.requests]
    return dataclasses.replace(trace, requests=tuple(requests))


def hot_trace(count: int = 6000, rate: float = 8.0) -> Trace:
    """80 % of the requests share a prefix of 20 blocks of 512 tokens, the rest nothing."""
    dice, at_s, requests = random.Random(7), 0.0, []
    for number in range(count):
        at_s += dice.expovariate(rate)
        shared = tuple(range(20)) if dice.random() < 0.8 else ()
        path = (*shared, *(1000 + number * 4 + depth for depth in range(2)))
        tokens = len(path) * 512 + 100
        requests.append(
            TraceRequest(at_s=at_s, input_tokens=tokens, output_tokens=100, path=path, session="")
        )
    return Trace(name="hot", block_tokens=512, requests=tuple(requests))


def simulated(name: str, trace: Trace, replicas: int, eviction: str) -> Iterator[dict[str, Any]]:
    one = replay(trace, make_policy(eviction, CAPACITY_BLOCKS * replicas))
    of_one = one.hit_tokens / one.input_tokens
    for policy in POLICIES:
        route, _, blind = policy.partition("-")
        found = simulate_region(
            trace, replicas, route, eviction, CAPACITY_BLOCKS, block_events=not blind
        )
        yield {
            "name": name,
            "replicas": replicas,
            "eviction": eviction,
            "policy": policy,
            "cached_token_share": round(found.cached_token_share, 4),
            "of_one": round(found.cached_token_share / of_one, 4),
            "ttft_p50_ms": round(found.ttft_p50_ms),
            "ttft_p95_ms": round(found.ttft_p95_ms),
            "in_flight_max_over_mean": round(found.in_flight_max_over_mean, 3),
        }


# Live.


async def live(policy: str, replicas: int, trace: Trace) -> list[Sample]:
    """The trace's first requests, shortened, over fresh replicas; all together keep the same,
    however many they are.
    """
    environ = LIVE | {"BUL_CACHE_MAX_TOKENS": str(LIVE_CACHE_TOKENS // replicas)}
    environ |= AT_ONCE if replicas == 1 else {}
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = ReplicaSet(folder, stack, environ)
        await started.start(*(f"r{number}" for number in range(replicas)))
        flags = [part for url in started.urls for part in ("--replica", url)]
        arguments = ["route", "--port", "0", "--log-format", "json", "--policy", policy, *flags]
        router = await stack.enter_async_context(bul_process(arguments, folder, environ=LIVE))
        url = str((await router.wait_for("ready"))["url"])
        await asyncio.sleep(1.5)  # until the router has seen all of them
        client = Client(parse_target(url), model="bul-timed", timeout_s=60.0)
        stack.callback(client.close)
        asked = from_trace(trace, seed=3, time_scale=LIVE_TIME, length_scale=LIVE_LENGTH)
        run = await run_load(client, asked, Limits(requests=LIVE_REQUESTS))
    failed = [sample.error for sample in run.samples if sample.error]
    assert not failed, f"{len(failed)} requests failed: {failed[0]}"
    return run.samples


def live_row(policy: str, replicas: int, runs: Sequence[list[Sample]]) -> dict[str, Any]:
    """Of all runs together, and the p95 of each."""
    samples = [sample for run in runs for sample in run]
    cached = sum(sample.cached_tokens for sample in samples)
    p50, p95 = np.quantile([sample.ttft_s * 1000 for sample in samples], (0.5, 0.95))
    each = [np.quantile([sample.ttft_s * 1000 for sample in run], 0.95) for run in runs]
    return {
        "name": "live",
        "replicas": replicas,
        "policy": policy,
        "requests": len(samples),
        "cached_token_share": round(cached / sum(s.prompt_tokens for s in samples), 4),
        "ttft_p50_ms": round(float(p50), 1),
        "ttft_p95_ms": round(float(p95), 1),
        "ttft_p95_each_ms": [round(float(value), 1) for value in each],
    }


def live_rows(trace: Trace) -> Iterator[dict[str, Any]]:
    """One replica first, with the cache of four; then the two policies in turn."""
    one = live_row("prefix", 1, [asyncio.run(live("prefix", 1, trace))])
    yield one | {"of_one": 1.0}
    runs: dict[str, list[list[Sample]]] = {"prefix": [], "least_conn": []}
    for policy in LIVE_ORDER:
        runs[policy].append(asyncio.run(live(policy, 4, trace)))
    for policy, own in runs.items():
        found = live_row(policy, 4, own)
        yield found | {"of_one": round(found["cached_token_share"] / one["cached_token_share"], 4)}


def rows(*, only_live: bool) -> Iterator[dict[str, Any]]:
    trace = read_trace(TRACE)
    if not only_live:
        for replicas, times in FLEETS:
            for eviction in ("lru", "adaptive"):
                yield from simulated("moon_conv", slower(trace, times), replicas, eviction)
        yield from simulated("hot", hot_trace(), 4, "lru")
    yield from live_rows(trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--live", action="store_true", help="the live part alone")
    only_live = parser.parse_args().live
    found = []
    for row in rows(only_live=only_live):
        found.append(row)
        shown = " ".join(f"{name}={value}" for name, value in row.items())
        sys.stdout.write(shown + "\n")
        sys.stdout.flush()
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
