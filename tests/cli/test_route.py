"""`bul route` as a process: ready line, an answer, SIGTERM, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from bul.cli.main import main
from bul.testing.region_process import bul_process
from bul.testing.upstreams import FakeUpstream, answering
from bul.testing.waiting import eventually


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_it_says_that_it_is_ready_answers_and_ends_with_sigterm() -> None:
    async with FakeUpstream(answering(b"ok")) as upstream:
        flags = ["--port", "0", "--log-format", "json", "--replica", upstream.url]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bul", "route", *flags, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
            url = ready["url"]

            async def answered() -> bool:
                return await asyncio.to_thread(_status, f"{url}/v1/models") == 200

            await eventually("a request is answered", answered)
            assert ready["policy"] == "prefix"
        finally:
            process.send_signal(signal.SIGTERM)
            await process.communicate()
        assert process.returncode == 0


def test_without_a_replica_it_says_which_flag_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["route", "--port", "0"]) == 2
    assert "--replica" in capsys.readouterr().err


@pytest.mark.security
def test_an_open_bind_without_a_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["route", "--host", "0.0.0.0", "--port", "0", "--replica", "http://127.0.0.1:1"]
    assert main(arguments) == 2
    assert "no API key is set" in capsys.readouterr().err


@pytest.mark.slow
async def test_explain_logs_one_json_line_for_each_decision(tmp_path: Path) -> None:
    async with FakeUpstream(answering(b"ok")) as upstream:
        flags = ["--port", "0", "--log-format", "json", "--replica", upstream.url, "--explain"]
        async with bul_process(["route", *flags], tmp_path) as process:
            url = (await process.wait_for("ready"))["url"]

            async def answered() -> bool:
                return await asyncio.to_thread(_status, f"{url}/v1/models") == 200

            await eventually("an answer", answered)
            await eventually("a line", lambda: '"chosen":"http' in process.errors)
        decisions = [json.loads(line) for line in process.errors.splitlines()]
    assert decisions[-1]["chosen"] == upstream.url
    assert decisions[-1]["candidates"][0]["score"] == 1.0
