"""Two regions with 80 ms between them: lag, partitions, dead regions, bytes over the ocean.

    make bench-regions                             about three minutes; bench/out/regions.json
    .venv/bin/python bench/regions.py --quick      a smoke run, about a minute

The real `bul up --regions` (timed engine, one replica each, real agents on real disks), its links
in this process so that they can be cut, and beside it a `bul up` of one region alone. Blocks of
64 kB that cannot be compressed are written by a replica without a model (`_region_replica.py`).

    local_hit_p95_ratio     a cached prompt at a region's router, over the same at the lone region
    door_p95_ratio          the same through the door that only a one-machine world has
    lag_p50_ms, lag_p99_ms  from before the write in one region until the other's disk has the block
    local_failed            of local requests during the partition
    converge_after_heal_s   64 MiB of news waited; 32 MiB of them both regions had computed
    converge_after_overflow_s  more news than the queue holds: digests must find them
    wan_bytes_ratio         bytes on the wire in that first repair, over the missing blocks' bytes
    stream_wan_bytes_ratio  the same while lag was measured
    dead_region_added_p99_ms  to a miss, with the other region frozen and its links silent
    control_serial_added_p99_ms  the scaling guide's loop: ask, wait, go on to the next region
    wrong_bytes, resurrections  blocks with other bytes; deleted blocks that either disk still has
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
from _region_replica import BLOCK_BYTES, BenchReplica, key_of

from bul.bench.statistics import percentile
from bul.cli.ask import ask, model_id
from bul.cli.events import EventLog
from bul.cli.regions import AgentAddress, ask_agent
from bul.cli.world import World
from bul.config import load_settings
from bul.regions.wan import Faults
from bul.testing.region_process import clean_environment, region_process

HERE = Path(__file__).resolve().parent
US, EU = "us-east", "eu-west"
RTT_S = 0.08
QUEUE_KEYS = 1500
BACKLOG = (64 << 20) // BLOCK_BYTES
SETTINGS = {
    "BUL_REGIONS_WORLD": f"{US},{EU}",
    "BUL_REGIONS_WAN_RTT_MS": str(RTT_S * 1000),
    "BUL_REGIONS_QUEUE_KEYS_MAX": str(QUEUE_KEYS),
    "BUL_SERVE_ENGINE": "timed",
    "BUL_UP_REPLICAS": "1",
    "BUL_ROUTE_PORT": "0",
    "BUL_CACHE_DISK_BYTES_MAX": str(2 << 30),
}


class Bench:
    """What all parts need."""

    def __init__(self, world: World, folder: Path, lone_url: str, *, quick: bool) -> None:
        self.world = world
        self.quick = quick
        self.lone_url = lone_url
        agents = msgspec.json.decode((folder / "world.json").read_bytes())
        self.replicas = {
            agent["region"]: BenchReplica(
                folder / agent["region"], agent["region"], agent["url"], agent["secret"]
            )
            for agent in agents
        }
        self.proxies = [proxy for links in world.wan.values() for proxy in links]
        self.client = httpx.AsyncClient(trust_env=False, timeout=30)

    def wan_bytes(self) -> int:
        return sum(links[0].passed_bytes for links in self.world.wan.values())

    def partition(self) -> None:
        for proxy in self.proxies:
            proxy.stall()

    def heal(self) -> None:
        for proxy in self.proxies:
            proxy.to_client = proxy.to_server = Faults(delay_s=RTT_S / 2)

    async def status(self, region: str) -> dict[str, Any]:
        body = await asyncio.to_thread(self._status, region)
        found: dict[str, Any] = msgspec.json.decode(body)
        return found

    def _status(self, region: str) -> bytes:
        replica = self.replicas[region]
        return ask_agent(AgentAddress(region, replica.agent_url, replica.secret), "status", b"")

    async def until(self, what: str, done: Callable[[], bool], deadline_s: float = 120.0) -> float:
        """Seconds until `done()`."""
        started_s = time.perf_counter()
        while not await asyncio.to_thread(done):
            if time.perf_counter() - started_s > deadline_s:
                raise SystemExit(f"not within {deadline_s} s: {what}")
            await asyncio.sleep(0.02)
        return time.perf_counter() - started_s

    async def reachable(self) -> None:
        for _ in range(600):
            found = [await self.status(region) for region in (US, EU)]
            peers = [peer for one in found for peer in one["peers"].values()]
            if all(peer["reachable"] and peer["synced"] for peer in peers):
                return
            await asyncio.sleep(0.1)
        raise SystemExit("the regions do not reach each other")


async def local_hits(bench: Bench) -> dict[str, float]:
    """The same cached prompt, in turns at the lone region, a region's router and its door."""
    home = bench.world.homes[US]
    urls = {"lone": bench.lone_url, "router": home, "door": bench.world.urls[US]}
    messages = [{"role": "user", "content": "What lies between two regions? " * 100}]
    took: dict[str, list[float]] = {name: [] for name in urls}
    model = await model_id(bench.client, home)
    for round_ in range(40 if bench.quick else 250):
        for name, url in urls.items():
            answer = await ask(bench.client, url, messages, model=model, max_tokens=1)
            if round_ >= 5:
                took[name].append(answer.ttft_ms)
    p95 = {name: percentile(times, 0.95) for name, times in took.items()}
    return {
        "local_hit_p95_ms": round(p95["router"], 2),
        "lone_hit_p95_ms": round(p95["lone"], 2),
        "local_hit_p95_ratio": round(p95["router"] / p95["lone"], 3),
        "door_p95_ratio": round(p95["door"] / p95["lone"], 3),
    }


async def lag(bench: Bench) -> dict[str, float]:
    """200 blocks a second in one region, watched on the other's disk."""
    seconds = 5 if bench.quick else 20
    count = 200 * seconds
    wrote: dict[int, float] = {}
    lags: dict[int, float] = {}
    before = bench.wan_bytes()

    def write() -> None:
        start_s = time.perf_counter()
        for number in range(0, count, 4):
            due_s = start_s + number / 200
            time.sleep(max(0.0, due_s - time.perf_counter()))
            now_s = time.perf_counter()
            wrote.update(dict.fromkeys(range(number, number + 4), now_s))
            bench.replicas[US].write(range(number, number + 4))

    def watch() -> None:
        end_s = time.perf_counter() + seconds + 60
        while len(lags) < count and time.perf_counter() < end_s:
            for number in [n for n in list(wrote) if n not in lags][:400]:
                if bench.replicas[EU].has(number):
                    lags[number] = time.perf_counter() - wrote[number]
            time.sleep(0.004)

    await asyncio.gather(asyncio.to_thread(write), asyncio.to_thread(watch))
    times = [1000 * lags.get(number, 60.0) for number in range(count)]
    return {
        "lag_p50_ms": round(percentile(times, 0.5), 1),
        "lag_p99_ms": round(percentile(times, 0.99), 1),
        "lag_blocks": count,
        "lag_blocks_lost": count - len(lags),
        "stream_wan_bytes_ratio": round((bench.wan_bytes() - before) / (count * BLOCK_BYTES), 4),
    }


async def partitions(bench: Bench) -> dict[str, Any]:
    """News wait on both sides of a cut; then more than the queue holds."""
    seconds = 5.0 if bench.quick else 60.0
    us, eu = bench.replicas[US], bench.replicas[EU]
    first = range(10_000, 10_000 + BACKLOG)
    both = range(10_000, 10_000 + BACKLOG // 2)
    dead = list(range(100))
    bench.partition()
    served = asyncio.create_task(_serve_locally(bench, seconds))
    await asyncio.to_thread(us.write, first)
    await asyncio.to_thread(eu.write, both)
    await asyncio.to_thread(us.tier.delete, [key_of(number) for number in dead])
    local_failed, local_requests = await served
    before = bench.wan_bytes()
    bench.heal()
    converge_s = await bench.until("the backlog arrives", lambda: not eu.missing(first))
    dead_s = await bench.until("deletes arrive", lambda: len(eu.missing(dead)) == len(dead))
    await bench.reachable()
    wan_bytes = bench.wan_bytes() - before
    missing_bytes = (len(first) - len(both)) * BLOCK_BYTES

    second = range(20_000, 20_000 + (QUEUE_KEYS + 1000))
    bench.partition()
    await asyncio.sleep(2.0)
    for at in range(second.start, second.stop, 500):
        await asyncio.to_thread(us.write, range(at, min(at + 500, second.stop)))
    dropped = (await bench.status(US))["peers"][EU]["dropped_total"]
    bench.heal()
    overflow_s = await bench.until("all that overflowed", lambda: not eu.missing(second))
    everything = [*range(100, 1000), *first, *second]
    wrong = await asyncio.to_thread(lambda: us.wrong(everything) + eu.wrong(everything))
    alive = [n for n in dead if us.has(n) or eu.has(n)]
    return {
        "local_failed": local_failed,
        "local_requests": local_requests,
        "partition_s": seconds,
        "converge_after_heal_s": round(max(converge_s, dead_s), 2),
        "wan_bytes_ratio": round(wan_bytes / missing_bytes, 4),
        "overflow_dropped": dropped,
        "converge_after_overflow_s": round(overflow_s, 2),
        "wrong_bytes": wrong,
        "resurrections": len(alive),
    }


async def _serve_locally(bench: Bench, seconds: float) -> tuple[int, int]:
    """Requests at both doors while the regions cannot hear each other; how many failed, of all."""
    failed = count = 0
    model = await model_id(bench.client, bench.world.urls[US])
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for region in (US, EU):
            count += 1
            text = f"Question {count // 4} during the cut. " * 30
            messages = [{"role": "user", "content": text}]
            try:
                url = bench.world.urls[region]
                await ask(bench.client, url, messages, model=model, max_tokens=2)
            except Exception as error:  # noqa: BLE001 - each is a failed request
                print(f"failed: {error}")
                failed += 1
        await asyncio.sleep(0.1)
    return failed, count


async def dead_region(bench: Bench) -> dict[str, float]:
    """Misses in one region with the other well, then from the moment of its death on."""
    us = bench.replicas[US]
    count = 400 if bench.quick else 2000
    await bench.reachable()

    def misses(first: int) -> list[float]:
        found = []
        for number in range(first, first + count):
            found.append(1000 * us.miss_s(number))
            time.sleep(0.01)
        return found

    well = await asyncio.to_thread(misses, 1_000_000)
    bench.partition()
    dead = await asyncio.to_thread(misses, 2_000_000)
    serial = [await _serial_miss_ms(bench) for _ in range(5)]
    bench.heal()
    await bench.reachable()
    return {
        "miss_p99_ms": round(percentile(well, 0.99), 2),
        "dead_region_miss_p99_ms": round(percentile(dead, 0.99), 2),
        "dead_region_miss_max_ms": round(max(dead), 1),
        "dead_region_added_p99_ms": round(percentile(dead, 0.99) - percentile(well, 0.99), 2),
        "control_serial_added_p99_ms": round(percentile(serial, 0.99) - percentile(well, 0.99), 1),
    }


async def _serial_miss_ms(bench: Bench) -> float:
    """The guide's loop: the other regions one after the other, each with the same deadline."""
    started_s = time.perf_counter()
    for (region, _), links in bench.world.wan.items():
        if region == US:
            with contextlib.suppress(httpx.HTTPError):
                await bench.client.get(f"{links[0].url}/health", timeout=0.5)
    return 1000 * (time.perf_counter() - started_s)


@contextlib.asynccontextmanager
async def running(folder: Path, *, quick: bool) -> AsyncIterator[Bench]:
    """The world and the lone region, ready."""
    settings = load_settings(environ=clean_environment(SETTINGS))
    (folder / "world").mkdir()
    (folder / "lone").mkdir()
    world = World(settings, EventLog("json", io.StringIO()), folder / "world")
    async with region_process(folder / "lone", "--replicas", "1") as lone:
        try:
            await world.start()
            await world.wait_ready()
            lone_url = (await lone.wait_for("ready"))["url"]
            await lone.wait_for("opening_answered")
            bench = Bench(world, folder / "world", lone_url, quick=quick)
            await bench.reachable()
            yield bench
            for replica in bench.replicas.values():
                replica.close()
            await bench.client.aclose()
        finally:
            await world.close()


async def run(*, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        async with running(Path(name), quick=quick) as bench:
            row: dict[str, Any] = {"rtt_ms": 1000 * RTT_S, "quick": quick}
            for part in (local_hits, lag, dead_region, partitions):
                row |= await part(bench)
                print(json.dumps(row), flush=True)
            return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    row = asyncio.run(run(quick=parser.parse_args().quick))
    for name, value in row.items():
        print(f"{name:32} {value}")
    out = HERE / "out" / "regions.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
