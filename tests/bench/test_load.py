"""The load generator against real sockets: counts, errors by kind, and no omission."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from bul.bench.client import Client, parse_target
from bul.bench.load import Limits, Run, run_load
from bul.bench.report import Slo, summarise
from bul.bench.sweep import judge, next_rate, sweep
from bul.bench.workload import Lengths, Synthetic, arrival_times, at_times, synthetic
from bul.config import ServeConfig, TimedConfig, load_settings
from bul.errors import ConfigError
from bul.testing.replica import running_replica

SPEC = Synthetic(prompt=Lengths(mean=80), output=Lengths(mean=4))
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ONCE = STREAM.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
WORD = b'data: {"choices":[{"delta":{"content":"cat "}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    writers: list[asyncio.StreamWriter] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handle(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # the transports close in the loop's next turns


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)


def answering(data: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()

    return handle


async def ask(url: str, limits: Limits, spec: Synthetic = SPEC, timeout_s: float = 10.0) -> Run:
    client = Client(parse_target(url), model="bul-timed", timeout_s=timeout_s)
    try:
        return await run_load(client, synthetic(spec, 1), limits)
    finally:
        client.close()


async def test_counts_add_up_and_tokens_come_from_usage() -> None:
    async with running_replica() as replica:
        run = await ask(replica.url, Limits(requests=30, concurrency=4, warmup=5))
    found = summarise(run, Slo(e2e_ms=60_000))
    assert len(run.samples) == 35
    assert (found["requests"], found["ok"], found["errors"]) == (30, 30, {})
    assert found["usage_share"] == 1.0
    assert all(sample.tokens == 4 and sample.prompt_tokens >= 80 for sample in run.samples)
    assert found["goodput_share"] == 1.0
    assert summarise(run, Slo(ttft_ms=0.0001))["goodput_share"] == 0.0


async def test_a_shared_prefix_and_later_turns_show_as_cached_tokens() -> None:
    spec = Synthetic(
        prompt=Lengths(mean=80),
        output=Lengths(mean=4),
        shared_share=1.0,
        shared_tokens=256,
        turns=3,
    )
    async with running_replica() as replica:
        run = await ask(replica.url, Limits(requests=12, concurrency=1), spec)
        cold = await ask(replica.url, Limits(requests=4, concurrency=1))
    assert summarise(run)["cached_token_share"] > 0.5
    assert summarise(cold)["cached_token_share"] == 0.0
    lengths = [sample.prompt_tokens for sample in run.samples]
    assert lengths[0] < lengths[1] < lengths[2]
    assert lengths[3] == lengths[0]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"HTTP/1.1 429 Too Many\r\ncontent-length: 2\r\n\r\nno", "429"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno", "4xx"),
        (b"HTTP/1.1 503 Unavailable\r\ncontent-length: 2\r\n\r\nno", "5xx"),
        (STREAM + chunked(WORD) + b"0\r\n\r\n", "cut"),
        (STREAM + chunked(WORD), "cut"),
        (b"", "cut"),
        (STREAM + chunked(WORD + b'data: {"error":{"message":"died"}}\n\n'), "sse_error"),
        (STREAM + chunked(b"data: {broken\n\n"), "bad_reply"),
        (b"SSH-2.0-OpenSSH_9\r\n", "bad_reply"),
        (ONCE + chunked(WORD + DONE) + b"0\r\n\r\n", ""),
    ],
)
async def test_every_kind_of_error_has_its_name(data: bytes, kind: str) -> None:
    async with serving(answering(data)) as url:
        run = await ask(url, Limits(requests=3, concurrency=1))
    assert [sample.error for sample in run.samples] == [kind] * 3


async def test_a_stream_with_pieces_cut_anywhere_is_read_whole() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        body = WORD * 3 + b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}'
        for byte in STREAM + chunked(body + b"\r\n\r\n" + DONE) + b"0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(handle) as url:
        run = await ask(url, Limits(requests=1, concurrency=1))
    sample = run.samples[0]
    assert (sample.error, sample.tokens, sample.prompt_tokens, len(sample.gaps_s)) == ("", 3, 9, 2)


async def test_silence_is_a_timeout_and_a_closed_port_is_refused() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as url:
        run = await ask(url, Limits(requests=2, concurrency=2), timeout_s=0.05)
    assert [sample.error for sample in run.samples] == ["timeout"] * 2
    run = await ask(url, Limits(requests=2, concurrency=2))
    assert [sample.error for sample in run.samples] == ["refused"] * 2
    assert summarise(run)["error_share"] == 1.0


async def test_duration_ends_a_run_and_what_hangs_is_counted_as_unfinished() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as url:
        run = await ask(url, Limits(duration_s=0.05, drain_s=0.0, concurrency=3))
    assert [sample.error for sample in run.samples] == ["unfinished"] * 3


async def test_ctrl_c_keeps_what_ran() -> None:
    stop = asyncio.Event()
    done = itertools.count(1)
    async with running_replica() as replica:
        client = Client(parse_target(replica.url), model="bul-timed")
        run = await run_load(
            client,
            synthetic(SPEC, 1),
            Limits(concurrency=2),
            stop=stop,
            on_done=lambda _: stop.set() if next(done) == 10 else None,
        )
        client.close()
    assert run.interrupted
    assert len(run.samples) >= 10
    assert not any(sample.error for sample in run.samples)


async def stalled(limits: Limits) -> Run:
    """A service of no delay that stands still once, 0.5 s from the third request on."""
    requests = itertools.count(1)
    gate = asyncio.Event()
    gate.set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            if next(requests) == 3:
                gate.clear()
                asyncio.get_running_loop().call_later(0.5, gate.set)
            await gate.wait()
            writer.write(STREAM + chunked(WORD + DONE) + b"0\r\n\r\n")

    async with serving(handle) as url:
        client = Client(parse_target(url), model="x")
        times = arrival_times(100, 0.0, 1)
        run = await run_load(client, at_times(synthetic(SPEC, 1), times), limits)
        client.close()
        return run


async def test_an_open_loop_charges_a_stall_to_everyone_who_would_have_asked() -> None:
    run = summarise(await stalled(Limits(requests=100)))
    assert run["ok"] == 100
    assert run["e2e_ms"]["p90"] > 250  # 50 of 100 were due while it stood still


async def test_control_a_closed_loop_hides_the_same_stall() -> None:
    run = summarise(await stalled(Limits(requests=100, concurrency=1)))
    assert run["ok"] == 100
    assert run["e2e_ms"]["p90"] < 250
    assert run["e2e_ms"]["max"] > 400


async def test_the_key_travels_with_each_request() -> None:
    keys = {"bench": hashlib.sha256(b"sesame").hexdigest()}
    async with running_replica(keys=keys) as replica:
        refused = await ask(replica.url, Limits(requests=2, concurrency=1))
        client = Client(parse_target(replica.url, api_key="sesame"), model="bul-timed")
        run = await run_load(client, synthetic(SPEC, 1), Limits(requests=2, concurrency=1))
        client.close()
    assert [sample.error for sample in refused.samples] == ["4xx"] * 2
    assert [sample.error for sample in run.samples] == [""] * 2


def test_the_variable_of_the_key_is_no_unknown_setting() -> None:
    assert load_settings(environ={"BUL_BENCH_API_KEY": "sesame"}).origins == {}
    with pytest.raises(ConfigError):
        load_settings(environ={"BUL_BENCH_API_KEYS": "sesame"})


def test_the_sweep_doubles_then_closes_in_and_ends() -> None:
    steps, rate = [], next_rate([], 1.0)
    while rate is not None:
        run = Run(samples=[], started_s=0.0)
        step = judge(rate, run, 1.0, Slo())
        steps.append(type(step)(
            rate=rate, sustained=rate <= 13, reason="", completed_per_s=0.0, summary={}
        ))  # fmt: skip
        rate = next_rate(steps, 1.0)
    assert [step.rate for step in steps[:5]] == [1, 2, 4, 8, 16]
    assert 13 / 1.09 <= max(step.rate for step in steps if step.sustained) <= 13
    assert len(steps) <= 9


@pytest.mark.slow
async def test_the_sweep_finds_the_configured_capacity() -> None:
    timed = TimedConfig(prefill_tokens_per_s=1e6, decode_tokens_per_s=100, block_bytes=256)
    spec = Synthetic(prompt=Lengths(mean=16), output=Lengths(mean=16))
    capacity = 4 / 0.16  # four slots, 16 tokens of 10 ms
    async with running_replica(ServeConfig(port=0, slots=4), timed) as replica:
        client = Client(parse_target(replica.url), model="bul-timed")

        async def run_at(rate: float, number: int) -> Run:
            times = arrival_times(rate, 0.0, number)
            limits = Limits(duration_s=2.0, drain_s=2.0)
            return await run_load(client, at_times(synthetic(spec, number), times), limits)

        steps = await sweep(
            run_at, start=15, step_s=2.0, slo=Slo(), on_step=lambda _: None, resolution=1.25
        )
        client.close()
    found = max(step.rate for step in steps if step.sustained)
    assert 0.75 * capacity <= found <= 1.25 * capacity, [(s.rate, s.reason) for s in steps]


@pytest.mark.parametrize(
    "url", ["http://10.1.2.3:80", "http://example.com", "ftp://127.0.0.1", "http://", "http://h:x"]
)
def test_only_this_machine_is_loaded_unless_told_otherwise(url: str) -> None:
    with pytest.raises(ConfigError):
        parse_target(url)


def test_a_remote_target_is_loaded_when_told_so_and_its_key_never_shows() -> None:
    target = parse_target("https://example.com/api/v1", api_key="secret", allow_remote=True)
    assert (target.port, target.prefix, target.tls) == (443, "/api", True)
    assert "secret" not in repr(target)
    with pytest.raises(ConfigError):
        parse_target("http://127.0.0.1", api_key="a\r\nx: y")
