"""`bul check` against live regions: a good one, and some with a fault."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bul.cli.accounts import database_url
from bul.testing.http_front import HttpFront
from bul.testing.postgres import running_postgres
from bul.testing.prometheus import running_prometheus
from bul.testing.region_process import BulProcess, bul_process, clean_environment, region_process
from bul.testing.waiting import eventually

ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
MONEY = ["--price-per-replica-hour", "2", "--budget-per-day"]
GOOD = {
    "BUL_TIMED_PREFILL_TOKENS_PER_S": "800",
    "BUL_TIMED_DECODE_TOKENS_PER_S": "1000",
    "BUL_TIMED_BLOCK_BYTES": "4096",
}

ENVIRON = {
    **GOOD,
    "BUL_TIMED_PREFILL_TOKENS_PER_S": "2000",
    "BUL_UP_REPLICAS_MAX": "3",
    "BUL_ROUTE_MEMBERS": "true",
    "BUL_ROUTE_MEMBER_TTL_S": "600",
}
"""Others may join it, up to three in all; one that falls silent stays a member."""


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


class Doctor:
    """A good region, the Prometheus that watches it, and what `bul check all` says of them."""

    def __init__(self, folder: Path, url: str, prometheus: str) -> None:
        self.folder, self.url, self.prometheus = folder, url, prometheus

    async def items(self, *, budget: str = "1000", **changed: str) -> dict[str, Any]:
        given = {"url": self.url, "prometheus": self.prometheus} | changed
        flags = [word for name, text in given.items() for word in (f"--{name}", text)]
        return (await check(self.folder, "all", *flags, *MONEY, budget))[1]

    async def failed(self, **changed: str) -> list[str]:
        items = await self.items(**changed)
        assert len(items) == 13
        return [name for name, item in items.items() if item["verdict"] == "fail"]

    async def uses(self, url: str) -> bool:
        async with httpx.AsyncClient(base_url=self.url) as client:
            page = (await client.get("/replicas")).json()
        return any(r["url"] == url and r["state"] == "ready" for r in page["replicas"])

    @contextlib.asynccontextmanager
    async def member(self, url: str) -> AsyncIterator[None]:
        """One more replica, as its own registration would make it."""
        word = {"url": url, "epoch": "1"}
        async with httpx.AsyncClient(base_url=self.url) as client:
            assert (await client.post("/members", json=word)).status_code == 200
            await eventually(f"the router uses {url}", lambda: self.uses(url))
            try:
                yield
            finally:
                await client.post("/members", json=word | {"leaving": True})


@contextlib.asynccontextmanager
async def watched_region(folder: Path) -> AsyncIterator[tuple[Doctor, list[str]]]:
    """With its baseline recorded, and the URLs of its two replicas."""
    async with region_process(folder, "--replicas", "2", environ=ENVIRON) as region:
        url = (await region.wait_for("ready"))["url"]
        await region.wait_for("opening_answered")
        targets = [url.removeprefix("http://")]
        async with running_prometheus(
            folder, rules=ALERTS, targets=targets, alertmanager=url
        ) as prometheus:
            assert (await check(folder, "baseline", "--url", url))[0] == 0
            scale_baseline(folder, 3.0)  # so that a machine that gets busy is no degradation
            await scraped(prometheus, "up == 1")
            yield Doctor(folder, url, prometheus), [r["url"] for r in region.said("replica_ready")]


def scale_baseline(folder: Path, factor: float) -> None:
    file = folder / ".bul" / "baseline.json"
    known = json.loads(file.read_text(encoding="utf-8"))
    known["ttft_ms"] = [value * factor for value in known["ttft_ms"]]
    file.write_text(json.dumps(known), encoding="utf-8")


async def scraped(prometheus: str, query: str) -> None:
    async with httpx.AsyncClient(base_url=prometheus) as client:

        async def known() -> bool:
            answer = await client.get("/api/v1/query", params={"query": query})
            return bool(answer.json()["data"]["result"])

        await eventually(f"Prometheus says {query}", known)


@pytest.mark.slow
async def test_a_good_region_has_thirteen_passes_and_no_failure(tmp_path: Path) -> None:
    """And one that costs too much, or that measures what cannot be, has that failure alone."""
    async with watched_region(tmp_path) as (doctor, replicas):
        said = await doctor.items()
        assert {name: i["evidence"] for name, i in said.items() if i["verdict"] != "pass"} == {}
        assert len(said) == 13
        assert "deleted everywhere" in said["coherency"]["evidence"]
        async with HttpFront(replicas[0]) as third, doctor.member(third.url):
            third.answers["/signals"] = 200, json.dumps({"error_rate": 7.0}).encode()
            assert await doctor.failed() == ["metrics"]
        assert await doctor.failed(budget="1") == ["costs"]


@pytest.mark.nightly
async def test_a_fault_in_a_live_region_fails_its_own_item_only(tmp_path: Path) -> None:
    """Ten of the thirteen; those of servers that are lost and of sessions are below."""
    async with watched_region(tmp_path) as (doctor, replicas):
        assert await doctor.failed() == []
        assert await doctor.failed(budget="1") == ["costs"]
        await faults_of_a_third_replica(doctor, replicas)
        await a_stopped_replica(doctor)
        await faults_in_front_of_it(doctor, replicas)
        await faults_of_its_baseline(doctor)
        assert await doctor.failed() == []


async def faults_of_a_third_replica(doctor: Doctor, replicas: list[str]) -> None:
    async with HttpFront(replicas[0]) as third, doctor.member(third.url):
        assert await doctor.failed() == []  # a front alone is no fault
        third.answers["/signals"] = 200, json.dumps({"error_rate": 7.0}).encode()
        assert await doctor.failed() == ["metrics"]
        third.answers.clear()
        third.answers["/health?deep=1"] = 503, b'{"status": "stuck", "deep": "timeout"}'
        assert await doctor.failed() == ["health"]
        third.answers.clear()
        async with HttpFront(replicas[1]) as fourth, doctor.member(fourth.url):
            assert await doctor.failed() == ["limits"]
    # Same disk folder, another secret: its keys are others, so nothing is shared.
    async with joined(doctor, BUL_SERVE_CACHE_SECRET="another one, by mistake"):
        assert await doctor.failed() == ["coherency"]


@contextlib.asynccontextmanager
async def joined(doctor: Doctor, **changed: str) -> AsyncIterator[BulProcess]:
    """A real third replica, over the region's own folder and ledger."""
    serve = ["serve", "--engine", "timed", "--log-format", "json", "--join", doctor.url]
    state = doctor.folder / ".bul"
    same = {
        "BUL_SERVE_PORT": "0",
        "BUL_CACHE_ENABLE_PERSISTENCE": "true",
        "BUL_CACHE_PERSISTENCE_DIR": str(state / "cache"),
        "BUL_ACCOUNTS_DATABASE_URL": database_url(state),
    }
    async with bul_process(serve, doctor.folder, ENVIRON | same | changed) as process:
        url = (await process.wait_for("ready"))["url"]
        await eventually("the router uses it", lambda: doctor.uses(url))
        yield process


async def a_stopped_replica(doctor: Doctor) -> None:
    """It takes connections and says nothing, as one that swaps or hangs does."""
    async with joined(doctor) as process:
        assert await doctor.failed() == []
        process.send(signal.SIGSTOP)
        try:
            assert await doctor.failed() == ["health"]
        finally:
            process.send(signal.SIGCONT)


async def faults_in_front_of_it(doctor: Doctor, replicas: list[str]) -> None:
    async with HttpFront(doctor.url) as front:
        assert await doctor.failed(url=front.url) == []
        turns = itertools.count()

        def leans(path: str) -> str | None:
            is_prompt = path.startswith("/v1/chat")
            return replicas[next(turns) % 10 == 0] if is_prompt else None

        front.leans = leans
        assert await doctor.failed(url=front.url) == ["load"]
        front.leans = lambda _path: None
        front.answers["/replicas"] = 404, b"{}"  # a plain proxy, which knows no replicas
        assert await doctor.failed(url=front.url) == ["balancer"]
    rules = doctor.folder / "other.yml"
    rules.write_text("groups: []\n", encoding="utf-8")
    other = doctor.folder / "other"
    other.mkdir()
    async with running_prometheus(
        other, rules=rules, targets=[doctor.url.removeprefix("http://")], alertmanager=doctor.url
    ) as blind:
        await scraped(blind, "up == 1")
        assert await doctor.failed(prometheus=blind) == ["monitoring"]


async def faults_of_its_baseline(doctor: Doctor) -> None:
    """Better times than the region's, and then none at all."""
    scale_baseline(doctor.folder, 1 / 6)
    assert await doctor.failed() == ["degradation"]
    scale_baseline(doctor.folder, 6.0)
    file = doctor.folder / ".bul" / "baseline.json"
    file.rename(doctor.folder / "baseline.json")
    assert await doctor.failed() == ["baseline"]
    (doctor.folder / "baseline.json").rename(file)


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


@pytest.mark.nightly
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
