"""Where requests go: cached-token share, first tokens and balance, by routing policy.

    make bench-routing                        about three minutes; bench/out/routing.json
    .venv/bin/python bench/routing.py --live  the live part alone

`moon_conv` whole over 4 and 16 simulated replicas by the production `route.py` and eviction code,
with and without block events; `of_one` is the cached-token share against one replica with the
summed cache. Four replicas get the trace four times as slowly, as they could not serve it else. A
hot trace: 80 % of the requests share one prefix. The live part plays a shortened trace over four
`bul serve --engine timed` processes behind `bul route`.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bul.cache.eviction.make import make_policy
from bul.cache.replay import replay
from bul.cache.replay_trace import Trace, TraceRequest, read_trace
from bul.simulator.fleet import simulate_region
from bul.testing.region_process import bul_process
from bul.testing.replica_set import ReplicaSet
from bul.testing.router_net import RawClient, post

ROOT = Path(__file__).resolve().parent.parent
TRACE = ROOT.parent / "shared" / "data" / "moon_conv.jsonl.gz"
OUT = ROOT / "bench" / "out" / "routing.json"
CAPACITY_BLOCKS = 3125
"""Of one replica: 1.6 million tokens, so that 16 of them keep what an unbounded cache would."""
FLEETS = ((4, 4.0), (16, 1.0))
LIVE_CACHE_TOKENS = 1 << 20
"""Of all replicas together, however many."""
POLICIES = ("prefix", "prefix-blind", "least_conn", "round_robin")
LIVE_REQUESTS, LIVE_RATE, LIVE_BLOCK_BYTES, LIVE_BLOCKS_MAX = 300, 8.0, 512, 24


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


def live_requests(trace: Trace) -> list[bytes]:
    """The first requests, each block a chunk of text of its own, at most LIVE_BLOCKS_MAX."""
    asked = []
    for request in trace.requests[:LIVE_REQUESTS]:
        chunks = [f"{block:08d} " * (LIVE_BLOCK_BYTES // 9) for block in request.path]
        text = "".join(chunk.ljust(LIVE_BLOCK_BYTES) for chunk in chunks[:LIVE_BLOCKS_MAX])
        message = {"role": "user", "content": text or "hello"}
        body = {"model": "bul-timed", "messages": [message], "max_tokens": 4, "temperature": 0}
        asked.append(post(json.dumps(body).encode()))
    return asked


async def ask(port: int, data: bytes, delay_s: float) -> tuple[int, int, float]:
    """Prompt tokens, cached ones, and the milliseconds to the first token as the replica says."""
    await asyncio.sleep(delay_s)
    began_s = asyncio.get_running_loop().time()
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port))
    await client.send(data)
    status, _, body = await client.answer()
    took_ms = (asyncio.get_running_loop().time() - began_s) * 1000
    client.close()
    assert status == 200, body
    usage = json.loads(body)["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], took_ms


async def live(policy: str, replicas: int, requests: list[bytes]) -> dict[str, Any]:
    """The same requests at the same times, over fresh replicas."""
    rates = {"BUL_TIMED_PREFILL_TOKENS_PER_S": "60000", "BUL_TIMED_DECODE_TOKENS_PER_S": "200"}
    rates["BUL_CACHE_MAX_TOKENS"] = str(LIVE_CACHE_TOKENS // replicas)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = ReplicaSet(folder, stack, rates | {"BUL_TIMED_BLOCK_BYTES": "1024"})
        await started.start(*(f"r{number}" for number in range(replicas)))
        flags = [part for url in started.urls for part in ("--replica", url)]
        arguments = ["route", "--port", "0", "--log-format", "json", "--policy", policy, *flags]
        router = await stack.enter_async_context(bul_process(arguments, folder))
        port = int((await router.wait_for("ready"))["url"].rpartition(":")[2])
        await asyncio.sleep(1.5)  # until the router has seen all of them
        dice, at_s, asking = random.Random(3), 0.0, []
        for data in requests:
            at_s += dice.expovariate(LIVE_RATE)
            asking.append(asyncio.ensure_future(ask(port, data, at_s)))
        answers = await asyncio.gather(*asking)
    tokens, cached, took = zip(*answers, strict=True)
    return {
        "name": "live",
        "replicas": replicas,
        "policy": policy,
        "cached_token_share": round(sum(cached) / sum(tokens), 4),
        "e2e_p50_ms": round(sorted(took)[len(took) // 2], 1),
        "e2e_p95_ms": round(sorted(took)[len(took) * 95 // 100], 1),
    }


def live_rows(trace: Trace) -> Iterator[dict[str, Any]]:
    """One replica first, with the cache of four."""
    requests = live_requests(trace)
    one = asyncio.run(live("prefix", 1, requests))
    yield one | {"of_one": 1.0}
    for policy in ("prefix", "least_conn"):
        found = asyncio.run(live(policy, 4, requests))
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
