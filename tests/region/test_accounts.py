"""A live region and its database: keys come and go, usage adds up, and nothing waits for it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from bul.accounts import store
from bul.accounts.database import open_database
from bul.accounts.records import read_replica_hours
from bul.cli.main import root
from bul.testing.postgres import running_postgres
from bul.testing.region_process import region_process
from bul.testing.request_load import RequestLoad
from bul.testing.waiting import eventually

AWAY_REQUESTS = 400


def keys(*arguments: str) -> dict[str, object]:
    outcome = CliRunner().invoke(root, [*arguments, "--json"])
    assert outcome.exit_code in (0, None), outcome.output
    found: dict[str, object] = json.loads(outcome.stdout)
    return found


@pytest.mark.slow
async def test_a_key_works_within_a_second_of_its_creation_and_not_after_its_end(
    tmp_path: Path,
) -> None:
    state = ["--state-dir", str(tmp_path / ".bul")]
    async with region_process(tmp_path, "--replicas", "1") as region:
        url = (await region.wait_for("ready"))["url"]
        async with httpx.AsyncClient(base_url=url) as client:

            async def status(key: str) -> int:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                return (await client.get("/v1/models", headers=headers)).status_code

            assert await status("") == httpx.codes.OK
            alice = str(keys("keys", "create", "alice", *state)["key"])

            async def nameless_is_out() -> bool:
                return await status("") == httpx.codes.UNAUTHORIZED

            await eventually("the gate closes", nameless_is_out)
            assert await status(alice) == httpx.codes.OK
            keys("keys", "revoke", "alice", *state)

            async def alice_is_out() -> bool:
                return await status(alice) == httpx.codes.UNAUTHORIZED

            await eventually("the key ends", alice_is_out)
            assert await status("") == httpx.codes.UNAUTHORIZED


@pytest.mark.parametrize(
    "away_s",
    [pytest.param(0.0, marks=pytest.mark.slow), pytest.param(30.0, marks=pytest.mark.nightly)],
)
async def test_no_request_fails_while_postgresql_is_away_and_the_ledger_catches_up(
    away_s: float, tmp_path: Path
) -> None:
    with running_postgres() as postgres:
        started_s = time.monotonic()
        environ = {"BUL_ACCOUNTS_DATABASE_URL": postgres.url, "BUL_TIMED_TIME_SCALE": "0"}
        async with region_process(tmp_path, "--replicas", "2", environ=environ) as region:
            url = (await region.wait_for("ready"))["url"]
            await region.wait_for("opening_answered")
            began_s = time.monotonic()
            async with RequestLoad(url, clients=8, stream_every=4) as load:
                await load.more(100)
                postgres.stop()
                await load.more(AWAY_REQUESTS)
                await asyncio.sleep(away_s)
                postgres.start()
                await load.more(100)
            assert load.lost == []
            loaded_s = time.monotonic() - began_s
            region.send(signal.SIGTERM)
            await region.ended()
            lived_s = time.monotonic() - started_s
        engine = open_database(postgres.url)
        used = sum(row.requests for row in store.read_usage(engine))
        billed_s = sum(hour.replica_seconds for hour in read_replica_hours(engine))
        engine.dispose()
    assert used == load.answers + OPENING_REQUESTS
    # Both replicas, while there was load and at most as long as the region lived.
    assert 2 * loaded_s <= billed_s <= 2 * lived_s


OPENING_REQUESTS = 2
"""Of the region itself, before it says that it is ready for others."""
