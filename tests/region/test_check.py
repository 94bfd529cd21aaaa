"""`bul check` against live regions: a good one, and some with a fault."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bul.testing.postgres import running_postgres
from bul.testing.prometheus import running_alertmanager, running_prometheus
from bul.testing.region_process import clean_environment, region_process
from bul.testing.waiting import eventually

ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
MONEY = ["--price-per-replica-hour", "2", "--budget-per-day"]
GOOD = {
    "BUL_TIMED_PREFILL_TOKENS_PER_S": "800",
    "BUL_TIMED_DECODE_TOKENS_PER_S": "1000",
    "BUL_TIMED_BLOCK_BYTES": "4096",
}


async def check(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and the items by id."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bul", "check", *arguments, "--json"),
        cwd=folder,
        env=clean_environment({}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, errors = await process.communicate()
    assert said, errors.decode()
    document = json.loads(said)
    items = {item["id"]: item for item in document.get("items", [])}
    return process.returncode or 0, items or document


@contextlib.asynccontextmanager
async def good_region(folder: Path, *flags: str) -> AsyncIterator[str]:
    async with region_process(folder, "--replicas", "2", *flags, environ=GOOD) as region:
        url = (await region.wait_for("ready"))["url"]
        await region.wait_for("opening_answered")
        yield url


@pytest.mark.slow
async def test_a_good_region_has_thirteen_verdicts_and_no_failure(tmp_path: Path) -> None:
    async with (
        good_region(tmp_path) as url,
        running_alertmanager(tmp_path, url) as alertmanager,
        running_prometheus(
            tmp_path,
            rules=ALERTS,
            targets=[url.removeprefix("http://")],
            alertmanager=alertmanager,
        ) as prometheus,
    ):
        code, _ = await check(tmp_path, "baseline", "--url", url)
        assert code == 0
        async with httpx.AsyncClient(base_url=prometheus) as client:

            async def scraped() -> bool:
                answer = await client.get("/api/v1/query", params={"query": "up == 1"})
                return bool(answer.json()["data"]["result"])

            await eventually("Prometheus has scraped the router", scraped)
        asked = ["all", "--url", url, "--prometheus", prometheus, *MONEY]
        code, items = await check(tmp_path, *asked, "96")
        said = {name: (item["verdict"], item["evidence"]) for name, item in items.items()}
        assert {name: one for name, one in said.items() if one[0] != "pass"} == {}
        assert len(items) == 13
        assert code == 0
        assert await failed_by(tmp_path, *asked, "95.99") == ["costs"]
        # The same region, a baseline of better times, and then none at all.
        known = json.loads((tmp_path / ".bul" / "baseline.json").read_text(encoding="utf-8"))
        known["ttft_ms"] = [value / 2 for value in known["ttft_ms"]]
        (tmp_path / ".bul" / "baseline.json").write_text(json.dumps(known), encoding="utf-8")
        assert await failed_by(tmp_path, *asked, "96") == ["degradation"]
        (tmp_path / ".bul" / "baseline.json").unlink()
        assert await failed_by(tmp_path, *asked, "96") == ["baseline"]


async def failed_by(folder: Path, *arguments: str) -> list[str]:
    code, items = await check(folder, *arguments)
    failed = [name for name, item in items.items() if item["verdict"] == "fail"]
    assert code == (1 if failed else 0)
    return failed


@pytest.mark.nightly
async def test_what_replicas_lost_fails_its_own_item_only(tmp_path: Path) -> None:
    """PostgreSQL, then Valkey; and sessions that clients name otherwise than the router reads."""
    with running_postgres() as postgres:
        environ = {
            **GOOD,
            "BUL_ACCOUNTS_DATABASE_URL": postgres.url,
            "BUL_ROUTE_POLICY": "session",
        }
        async with region_process(
            tmp_path, "--replicas", "2", "--shared", environ=environ
        ) as region:
            url = (await region.wait_for("ready"))["url"]
            await region.wait_for("opening_answered")
            asked = ["horizontal", "--url", url]
            assert await failed_by(tmp_path, *asked) == []
            assert await failed_by(tmp_path, *asked, "--session-header", "x-other") == ["session"]
            postgres.stop()
            await eventually("replicas noticed", lambda: noticed(tmp_path, asked, "database"))
            assert await failed_by(tmp_path, *asked) == ["database"]
            postgres.start()
            await eventually("it is back", lambda: passes(tmp_path, asked, "database"))
            valkey = region.said("shared_started")[0]["pid"]
            os.kill(valkey, signal.SIGSTOP)
            try:
                await eventually("replicas noticed", lambda: noticed(tmp_path, asked, "redis"))
                assert await failed_by(tmp_path, *asked) == ["redis"]
            finally:
                os.kill(valkey, signal.SIGCONT)


async def noticed(folder: Path, asked: list[str], item: str) -> bool:
    return item in await failed_by(folder, *asked)


async def passes(folder: Path, asked: list[str], item: str) -> bool:
    return not await noticed(folder, asked, item)


@pytest.mark.slow
async def test_replicas_that_do_not_share_a_folder_fail_coherency_and_the_shared_cache(
    tmp_path: Path,
) -> None:
    async with good_region(tmp_path, "--no-persistence") as url:
        code, items = await check(tmp_path, "horizontal", "--url", url)
    assert code == 1
    failed = [name for name, item in items.items() if item["verdict"] == "fail"]
    assert failed == ["redis", "coherency"]


@pytest.mark.slow
async def test_a_replica_instead_of_a_router_fails_the_balancer(tmp_path: Path) -> None:
    async with region_process(tmp_path, "--replicas", "1", environ=GOOD) as region:
        await region.wait_for("ready")
        replica = region.said("replica_ready")[0]["url"]
        _, items = await check(tmp_path, "pre", "--url", replica)
    failed = [name for name, item in items.items() if item["verdict"] == "fail"]
    assert failed == ["baseline", "balancer"]
    assert "no router" in items["balancer"]["evidence"]
