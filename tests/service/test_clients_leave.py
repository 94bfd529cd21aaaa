"""A client that goes takes its work with it: slots, holds and tasks are as at the start."""

import asyncio
import json

import httpx
import pytest

from bul.config import ServeConfig, TimedConfig
from bul.testing.replica import ReplicaUnderTest, running_replica
from bul.testing.waiting import until

pytestmark = pytest.mark.security
MODEL = "bul-timed"
SLOW = TimedConfig(prefill_tokens_per_s=1e6, decode_tokens_per_s=50, block_bytes=256)
"""4,000 tokens take 80 s: whoever waits for the end of an answer fails."""


def request(**fields: object) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": "x" * 900, "max_tokens": 3000, **fields}).encode()
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )


async def leave(replica: ReplicaUnderTest, data: bytes, *, after_bytes: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(data)
    await writer.drain()
    if after_bytes:
        await reader.read(after_bytes)
    else:
        await until(lambda: replica.runner.load().running > 0)
    writer.close()


def busy(replica: ReplicaUnderTest) -> int:
    load = replica.runner.load()
    return load.running + load.waiting


@pytest.mark.parametrize(
    ("fields", "after_bytes"),
    [({"stream": True}, 500), ({}, 0), ({"stream": True, "n": 4}, 500), ({"n": 4}, 0)],
)
async def test_leaving_frees_every_slot_at_once(
    fields: dict[str, object], after_bytes: int
) -> None:
    async with running_replica(timed=SLOW) as replica:
        await leave(replica, request(**fields), after_bytes=after_bytes)
        await until(lambda: busy(replica) == 0, timeout_s=10)
        assert replica.cache.stats()["engine"]["matches_alive"] == 0


async def test_staying_keeps_the_slot() -> None:
    """The control: what frees the slot above is the leaving."""
    async with running_replica(timed=SLOW) as replica:
        reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
        writer.write(request(stream=True))
        for _ in range(8):
            await reader.read(500)
        assert busy(replica) == 1
        writer.close()


async def test_leaving_while_waiting_leaves_the_queue() -> None:
    serve = ServeConfig(port=0, slots=1)
    async with running_replica(serve, SLOW) as replica:
        running = await asyncio.open_connection("127.0.0.1", replica.port)
        running[1].write(request(stream=True))
        await running[0].read(500)
        waiting = await asyncio.open_connection("127.0.0.1", replica.port)
        waiting[1].write(request(stream=True))
        await until(lambda: replica.runner.load().waiting == 1)
        waiting[1].close()
        await until(lambda: replica.runner.load().waiting == 0, timeout_s=10)
        assert replica.runner.load().running == 1
        running[1].close()


@pytest.mark.slow
async def test_a_thousand_aborted_and_rejected_requests_leave_nothing() -> None:
    serve = ServeConfig(port=0, slots=4, waiting_max=8)
    fast = TimedConfig(prefill_tokens_per_s=1e6, decode_tokens_per_s=2000, block_bytes=256)
    async with running_replica(serve, fast) as replica:
        tasks_before = len(asyncio.all_tasks())
        seen: list[bytes] = []

        async def one(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
            writer.write(request(stream=True, prompt=f"{number % 7}" * 900))
            seen.append((await reader.read(15))[9:12])
            writer.close()

        for start in range(0, 1000, 40):
            await asyncio.gather(*(one(number) for number in range(start, start + 40)))
        await until(lambda: busy(replica) == 0, timeout_s=20)
        assert {b"200", b"429"} == set(seen), "both kinds were wanted"
        stats = replica.cache.stats()["engine"]
        assert stats["matches_alive"] == stats["matches_leaked_total"] == 0
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before, timeout_s=10)
        async with httpx.AsyncClient(base_url=replica.url, timeout=30) as client:
            body = {"model": MODEL, "prompt": ["a"] * 4, "max_tokens": 2}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
