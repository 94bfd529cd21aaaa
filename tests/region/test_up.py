"""`bul up` as its user meets it: real processes, the official client, and what goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx
import openai
import pytest

from bul.testing.region_process import BulProcess, bul_process, region_process
from bul.testing.waiting import eventually, is_alive

pytestmark = [pytest.mark.slow, pytest.mark.steady]

QUESTION = "Which floor is the archive on, and who has the key? Answer in one sentence, please."


def client_of(url: str, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=retries)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def answer(client: openai.AsyncOpenAI, max_tokens: int = 8) -> str:
    reply = await client.chat.completions.create(
        model="bul-timed",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=max_tokens,
        temperature=0,
    )
    return reply.choices[0].message.content or ""


async def test_the_official_client_gets_whole_and_streamed_answers(tmp_path: Path) -> None:
    async with region_process(tmp_path) as region:
        url = (await region.wait_for("ready"))["url"]
        async with client_of(url) as client:
            (model,) = (await client.models.list()).data
            assert model.id == "bul-timed"
            whole = await answer(client)
            stream = await client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=8,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            pieces, usage = [], None
            async for chunk in stream:
                pieces += [choice.delta.content or "" for choice in chunk.choices]
                usage = chunk.usage or usage
    assert whole
    assert "".join(pieces) == whole
    assert usage is not None
    assert usage.completion_tokens == 8


async def test_it_answers_one_real_prompt_itself_twice(tmp_path: Path) -> None:
    async with region_process(tmp_path) as region:
        said = await region.wait_for("opening_answered")
    assert said["prompt_tokens"] > 900
    assert said["cached_tokens"] >= 896
    assert said["engine"] == "timed"


async def test_on_a_second_start_the_cold_figure_is_cold_and_the_warm_one_from_disk(
    tmp_path: Path,
) -> None:
    said = []
    for _ in range(2):
        async with region_process(tmp_path) as region:
            said.append(await region.wait_for("opening_answered"))
            region.send(signal.SIGINT)
            assert await region.ended() == 0
    assert [first["kept"] for first in said] == [False, True]
    assert all(one["cached_tokens"] >= 896 for one in said)
    assert all(one["cached_tokens_cold"] == 0 for one in said)


async def test_without_persistence_no_kv_is_left_on_disk(tmp_path: Path) -> None:
    async with region_process(tmp_path, "--no-persistence") as region:
        assert (await region.wait_for("opening_answered"))["kept"] is False
    left = {name for name in names_in(tmp_path / ".bul") if not name.startswith("accounts.db")}
    assert left == {"logs", "up.lock"}


async def test_a_cache_folder_that_cannot_be_used_is_said_and_the_region_runs(
    tmp_path: Path,
) -> None:
    (tmp_path / ".bul").mkdir()
    (tmp_path / ".bul" / "cache").write_text("a file where a folder should be")
    async with region_process(tmp_path) as region:
        said = await region.wait_for("persistence_off")
        assert (await region.wait_for("opening_answered"))["cached_tokens"] >= 896
    assert "--no-persistence" in said["text"]


async def test_persistence_that_was_asked_for_must_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    asked = ("--persistence", "--persistence-dir", "file")
    async with region_process(tmp_path, *asked) as region:
        assert await region.ended() == 1
        assert "file" in region.errors
        assert "--persistence-dir" in region.errors
        assert region.errors.count("\n") == 1


class Load:
    """Six clients that ask again and again, each answer taking some 0.6 s of decoding."""

    def __init__(self, url: str) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._done = False
        self._askers = [asyncio.create_task(self._ask(url)) for _ in range(6)]

    async def stop(self) -> None:
        self._done = True
        await asyncio.gather(*self._askers)

    async def _ask(self, url: str) -> None:
        async with client_of(url) as client:
            while not self._done:
                try:
                    assert await answer(client, max_tokens=32)
                    self.answers += 1
                except openai.APIError as error:
                    self.failures.append(f"{error!r} {error.__cause__!r}")
                    await asyncio.sleep(0.05)


async def kill_one_replica_under_load(region: BulProcess) -> Load:
    """Returns once the killed replica is back and answers have gone on for a while."""
    load = Load((await region.wait_for("ready"))["url"])
    await eventually("all clients are under way", lambda: load.answers >= 12)
    before, answered = len(region.said("replica_ready")), load.answers
    os.kill(region.replica_pids()["replica-0"], signal.SIGKILL)
    await region.wait_for("replica_exited", 10)
    await eventually("it is back", lambda: len(region.said("replica_ready")) > before, 10)
    await eventually("answers go on", lambda: load.answers >= answered + 12)
    await load.stop()
    return load


async def test_answers_go_on_when_a_replica_is_killed_and_it_returns(tmp_path: Path) -> None:
    async with region_process(tmp_path) as region:
        load = await kill_one_replica_under_load(region)
        old, new = region.said("replica_started")[0]["pid"], region.replica_pids()["replica-0"]
    assert load.failures == []
    assert old != new


NO_RETRY = {"BUL_ROUTE_RETRY_SHARE": "0", "BUL_ROUTE_RETRIES_AT_LEAST": "0"}


async def test_the_control_without_retries_sees_the_kill(tmp_path: Path) -> None:
    async with region_process(tmp_path, environ=NO_RETRY) as region:
        load = await kill_one_replica_under_load(region)
    assert load.failures


AT_ONCE = {"BUL_TIMED_TIME_SCALE": "0"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    async with region_process(tmp_path, environ=AT_ONCE) as region:
        await region.wait_for("opening_answered")
        region.send(number)
        assert await region.ended() == 0
        assert region.errors == ""
        assert not any(is_alive(pid) for pid in region.all_pids())
    assert names_in(tmp_path) == [".bul"]


async def test_a_signal_while_it_starts_ends_it_cleanly(tmp_path: Path) -> None:
    async with region_process(tmp_path) as region:
        await region.wait_for("replica_started")
        region.send(signal.SIGINT)
        assert await region.ended() == 0
        assert not any(is_alive(pid) for pid in region.all_pids())


async def test_no_replica_survives_a_killed_region(tmp_path: Path) -> None:
    async with region_process(tmp_path) as region:
        await region.wait_for("ready")
        pids = region.all_pids()
        assert all(is_alive(pid) for pid in pids)
        region.send(signal.SIGKILL)
        await region.ended()
        await eventually("all are gone", lambda: not any(is_alive(pid) for pid in pids))


async def test_after_a_kill_the_same_folder_can_be_used_again(tmp_path: Path) -> None:
    for number in (signal.SIGKILL, signal.SIGINT):
        async with region_process(tmp_path) as region:
            await region.wait_for("ready")
            region.send(number)
            await region.ended()


async def test_a_second_region_in_the_folder_is_refused(tmp_path: Path) -> None:
    async with region_process(tmp_path) as first:
        await first.wait_for("router_listening")
        async with region_process(tmp_path) as second:
            assert await second.ended() == 2
            assert f"already runs in {tmp_path}/.bul, process {first.pid}" in second.errors
            assert second.errors.count("\n") == 1


async def test_a_taken_default_port_is_said_and_a_free_one_is_used(tmp_path: Path) -> None:
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(("127.0.0.1", 8000))
        taken.listen()
    except OSError:
        taken.close()  # somebody else has it: taken as well
    with taken:
        arguments = ["up", "--engine", "timed", "--log-format", "json"]
        async with bul_process(arguments, tmp_path, {"BUL_SERVE_PORT": "0"}) as region:
            assert "port 8000 is taken" in str(await region.wait_for("router_port_taken"))
            url = (await region.wait_for("ready"))["url"]
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.get(f"{url}/v1/models")).status_code == 200


async def test_a_port_that_was_asked_for_must_be_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with region_process(tmp_path, "--port", port) as region:
            assert await region.ended() == 2
            assert port in region.errors
            assert region.errors.count("\n") == 1


async def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    model = str(tmp_path / "none.gguf")
    async with region_process(tmp_path, "--engine", "embedded", "--model", model) as region:
        assert await region.ended() == 1
        assert model in region.errors
        assert region.errors.count("\n") == 1


async def test_a_state_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with region_process(tmp_path, "--state-dir", "file/state") as region:
        assert await region.ended() == 2
        assert "cannot use the state folder" in region.errors
        assert region.errors.count("\n") == 1


async def test_the_real_model_answers_through_the_router(tmp_path: Path) -> None:
    async with region_process(tmp_path, "--engine", "embedded") as region:
        url = (await region.wait_for("ready", 120))["url"]
        said = await region.wait_for("opening_answered", 240)
        async with client_of(url) as client:
            (model,) = (await client.models.list()).data
            reply = await client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                max_tokens=12,
                temperature=0,
            )
        region.send(signal.SIGINT)
        assert await region.ended() == 0
        assert not any(is_alive(pid) for pid in region.all_pids())
    assert "Paris" in (reply.choices[0].message.content or "")
    assert said["cached_tokens"] >= 896
    assert said["ttft_warm_ms"] < said["ttft_cold_ms"]
