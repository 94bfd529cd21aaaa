"""`bul cache stats` and `bul cache explain` with --url: what a running replica says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from bul.accounts.keys import hash_key
from bul.cli.main import main
from bul.testing.replica import running_replica

PROMPT = "word" * 200


async def bul(*arguments: str) -> int:
    """The command in a thread: the replica needs this loop."""
    return await asyncio.to_thread(main, ["cache", *arguments])


async def test_a_replica_shows_its_tiers_and_explains_a_prompt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running_replica() as replica:
        assert await bul("explain", "--url", replica.url, PROMPT) == 1
        assert "0 of 3 blocks cached" in capsys.readouterr().out
        async with httpx.AsyncClient(base_url=replica.url) as client:
            body = {"model": "bul-timed", "prompt": PROMPT, "max_tokens": 1}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
        assert await bul("explain", "--url", replica.url, "--json", PROMPT) == 0
        assert json.loads(capsys.readouterr().out)["tiers"] == {"ram": 3}
        assert await bul("explain", "--chat", "--url", replica.url, PROMPT) == 1
        capsys.readouterr()
        assert await bul("stats", "--url", replica.url, "--json") == 0
        assert json.loads(capsys.readouterr().out)["parts"]["ram"]["blocks"] == 3
        assert await bul("stats", "--url", f"{replica.url}/") == 0
        assert "tokens asked for were cached" in capsys.readouterr().out


async def test_a_key_comes_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text("bul-secret\n")
    async with running_replica(keys={"operator": hash_key("bul-secret")}) as replica:
        assert await bul("stats", "--url", replica.url) == 1
        assert "--key-file" in capsys.readouterr().err
        key = ("--key-file", str(tmp_path / "key"))
        assert await bul("stats", "--url", replica.url, *key) == 0
        assert await bul("explain", "--url", replica.url, *key, PROMPT) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[", "127.0.0.1:1"])
def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert main(["cache", "stats", "--url", url]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "--url is a replica's address" in captured.err
