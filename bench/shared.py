"""What a shared cache that fails costs a replica's users, and how fast a good one is.

    make bench-shared                 two minutes; bench/out/shared.json
    .venv/bin/python bench/shared.py --quick

A replica on the timed engine (20,000 prompt tokens/s), a real Valkey behind a proxy; every request
finds its RAM empty, so that the shared cache must be asked. Requests come in an open loop, 20 a
second. Per fault (killed; SIGSTOP for ten seconds; every answer 500 ms late; random bytes on the
line; damaged records; records under each other's names):

    failed, wrong        requests without an answer; with another text than without cache
    breaker_open_s       from the fault to the open breaker; none for what is only a miss
    added_p99_ms         the p99 of the time to the first token, less that of the same requests to a
                         second replica with no shared cache, in the same seconds; of those that
                         came a second after the fault or later

Rates: `get` and `set` of 16 blocks of 1,474,560 bytes, beside redis-py's own MGET and SET of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from bul.cache.contract import BlockRecord
from bul.cache.tiers.shared import open_shared_tier
from bul.cli.ask import ask
from bul.config import KVCacheConfig, ServeConfig, TimedConfig
from bul.inference.timed import TimedCore
from bul.testing.replica import ReplicaUnderTest, running_replica
from bul.testing.shared_faults import FAULTS, SharedFaults
from bul.testing.tcp_proxy import FaultProxy
from bul.testing.tier_contract import chain_of_records
from bul.testing.valkey import Valkey, running_valkey

OUT = Path(__file__).parent / "out" / "shared.json"
PROMPTS = [f"{topic}: " + "all of the old oak and the new elm " * 40 for topic in "abcdefgh"]
SERVE = ServeConfig(port=0, context_tokens=2048)
TIMED = TimedConfig(prefill_tokens_per_s=20_000, decode_tokens_per_s=1000, block_bytes=65536)
RATE = 20.0
OPEN_S = 1.0
BLOCK_BYTES, BATCH, ROUNDS = 1_474_560, 16, 7
POLL_S = 0.005


class Load:
    """Requests at RATE; of each when it was due, its TTFT, and whether its text was right."""

    def __init__(self, replica: ReplicaUnderTest, client: httpx.AsyncClient) -> None:
        self._replica, self._client = replica, client
        self.truth: list[str] = []
        self.answered: list[tuple[float, float, bool]] = []
        self.failed = 0

    async def prepare(self) -> None:
        for number in range(len(PROMPTS)):
            self.truth.append((await self._ask(number, use_cache=False))[1])
            await self._ask(number)
        await asyncio.to_thread(self._replica.cache.flush)

    async def run(self, seconds: float) -> None:
        began_s = time.monotonic()
        asking = []
        for number in range(int(seconds * RATE)):
            due_s = began_s + number / RATE
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            asking.append(asyncio.create_task(self._one(number)))
        await asyncio.gather(*asking)

    async def _one(self, number: int) -> None:
        start_s = time.monotonic()
        try:
            ttft_ms, text = await self._ask(number)
        except Exception as error:  # noqa: BLE001 - every kind of failure counts
            print("failed:", error, file=sys.stderr)
            self.failed += 1
            return
        self.answered.append((start_s, ttft_ms, text == self.truth[number % len(PROMPTS)]))

    async def _ask(self, number: int, *, use_cache: bool = True) -> tuple[float, str]:
        self._replica.cache.clear_ram()
        content = PROMPTS[number % len(PROMPTS)]
        answer = await ask(
            self._client,
            self._replica.url,
            [{"role": "user", "content": content}],
            model=self._replica.core.model_id,
            max_tokens=4,
            use_cache=use_cache,
        )
        return answer.ttft_ms, answer.text


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


async def row(fault: str, seconds: float) -> dict[str, Any]:
    """The fault's replica and one without a shared cache, in the same seconds."""
    core = TimedCore(SERVE, TIMED)
    with tempfile.TemporaryDirectory() as folder, running_valkey(Path(folder)) as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            faults = SharedFaults(server, proxy)
            tier = open_shared_tier(KVCacheConfig(shared_url=faults.url), core.identity)
            async with (
                httpx.AsyncClient(trust_env=False) as client,
                running_replica(SERVE, TIMED, core=core, tiers=[tier]) as replica,
                running_replica(SERVE, TIMED) as bare,
            ):
                load, control = Load(replica, client), Load(bare, client)
                await load.prepare()
                await control.prepare()
                await asyncio.gather(load.run(2.0), control.run(2.0))
                load.answered.clear()
                control.answered.clear()
                began_s = time.monotonic()
                faults.begin(fault)
                watching = asyncio.create_task(opened(replica, began_s, seconds))
                await asyncio.gather(load.run(seconds), control.run(seconds))
                open_s = await watching
                faults.heal(fault)
    after, bare_after = (
        p99([ttft for at, ttft, _ in one.answered if at > began_s + OPEN_S])
        for one in (load, control)
    )
    return {
        "failed": load.failed,
        "wrong": sum(not right for _, _, right in load.answered) + core.wrong_blocks,
        "breaker_open_s": None if open_s is None else round(open_s, 3),
        "p99_ms": round(after, 1),
        "p99_without_ms": round(bare_after, 1),
        "added_p99_ms": round(after - bare_after, 1),
        "requests": len(load.answered),
    }


async def opened(replica: ReplicaUnderTest, began_s: float, seconds: float) -> float | None:
    """When the breaker opened, in seconds since the fault."""
    while time.monotonic() < began_s + seconds:
        if replica.cache.stats()["shared"]["read_breaker_open"]:
            return time.monotonic() - began_s
        await asyncio.sleep(POLL_S)
    return None


def rates() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, running_valkey(Path(folder)) as server:
        tier = open_shared_tier(
            KVCacheConfig(shared_url=server.url, shared_timeout_s=10), bytes(32)
        )
        batches = [
            chain_of_records(BATCH, first_token=i * 1000, block_bytes=BLOCK_BYTES)
            for i in range(ROUNDS)
        ]
        keys = [[record.key for record in batch] for batch in batches]
        found = {
            "tier_set": median_rate(lambda i: tier.set(batches[i])),
            "tier_get": median_rate(lambda i: tier.get(keys[i])),
        }
        tier.close()
        found |= plain_rates(server, batches)
    return found


def plain_rates(server: Valkey, batches: list[list[BlockRecord]]) -> dict[str, float]:
    """redis-py as it comes."""
    with server.client() as client:
        client.flushall()

        def set_all(i: int) -> None:
            with client.pipeline(transaction=False) as pipeline:
                for record in batches[i]:
                    pipeline.set(record.key, record.payload)
                pipeline.execute()

        return {
            "redis_py_set": median_rate(set_all),
            "redis_py_mget": median_rate(lambda i: client.mget([r.key for r in batches[i]])),
        }


def median_rate(act: Callable[[int], object]) -> float:
    seconds = []
    for i in range(ROUNDS):
        began_s = time.perf_counter()
        act(i)
        seconds.append(time.perf_counter() - began_s)
    return round(BATCH * BLOCK_BYTES / statistics.median(seconds) / 1e6)


async def run(seconds: float) -> dict[str, Any]:
    rows = {}
    for fault in FAULTS:
        rows[fault] = await row(fault, seconds)
        print(f"{fault:10}", rows[fault], flush=True)
    return {"faults": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four seconds a fault, not ten")
    seconds = 4.0 if parser.parse_args().quick else 10.0
    document = {"mb_per_s": rates()}
    print(document["mb_per_s"])
    document |= asyncio.run(run(seconds))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(document, indent=2) + "\n")
    faults = document["faults"]
    return int(any(faults[name]["failed"] or faults[name]["wrong"] for name in faults))


if __name__ == "__main__":
    sys.exit(main())
