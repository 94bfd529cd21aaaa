"""`bul serve` as a process: the ready line, the drain, the exit codes."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

MODEL = "bul-timed"


@contextlib.asynccontextmanager
async def serving(
    folder: Path, *flags: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await start(folder, "--engine", "timed", "--port", "0", *flags)
    try:
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        assert ready["event"] == "ready"
        yield process, ready["url"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def start(folder: Path, *flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bul", "serve", "--log-format", "json", *flags,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder,
        env={key: value for key, value in os.environ.items() if not key.startswith("BUL_")},
    )  # fmt: skip


async def test_sigterm_lets_a_running_answer_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, "--decode-tokens-per-s", "50") as (process, url),
        httpx.AsyncClient(base_url=url, timeout=30) as client,
        httpx.AsyncClient(base_url=url, timeout=30) as other,
    ):
        body = {"model": MODEL, "prompt": "a", "max_tokens": 40, "stream": True}
        await other.get("/ready")
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            process.send_signal(signal.SIGTERM)
            refused = await until_503(other)
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert sum('"text":"' in line for line in rest) >= 39
        assert refused.json()["error"]["code"] == "shutting_down"
        assert await asyncio.wait_for(process.wait(), 10) == 0
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - pathlib is refused in async code


async def until_503(client: httpx.AsyncClient) -> httpx.Response:
    body = {"model": MODEL, "prompt": "a", "max_tokens": 1}
    while True:
        answer = await client.post("/v1/completions", json=body)
        if answer.status_code == 503:
            return answer


async def test_without_patience_a_drain_cuts_streams_with_an_error_event(tmp_path: Path) -> None:
    """The control of the test above: what lets the answer finish is the drain."""
    async with (
        serving(tmp_path, "--decode-tokens-per-s", "50", "--drain-s", "0.1") as (process, url),
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        body = {"model": MODEL, "prompt": "a", "max_tokens": 1000, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line async for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.security
async def test_beyond_loopback_without_a_key_it_does_not_start(tmp_path: Path) -> None:
    process = await start(tmp_path, "--engine", "timed", "--port", "0", "--host", "0.0.0.0")
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert out == b""
    assert err.decode().count("\n") == 1
    assert "bul keys create" in err.decode()


async def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    process = await start(tmp_path, "--port", "0", "--model", str(tmp_path / "none.gguf"))
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert err.decode().count("\n") == 1
    assert "none.gguf" in err.decode()


@pytest.mark.security
async def test_a_created_key_opens_the_service(tmp_path: Path) -> None:
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bul", "keys", "create", "alice", "--json",
        stdout=asyncio.subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    out, _ = await made.communicate()
    key = json.loads(out)
    (tmp_path / "bul.toml").write_text(f"[keys]\n{key['line']}\n")
    async with serving(tmp_path) as (_, url), httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/v1/models")).status_code == 401
        headers = {"Authorization": f"Bearer {key['key']}"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
