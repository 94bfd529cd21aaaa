"""The live page in a real Chromium, over a region whose figures change."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest

from bul.accounts.database import open_database, sqlite_url
from bul.accounts.keys import hash_key
from bul.accounts.records import read_decisions
from bul.testing.browser import open_page, running_browser
from bul.testing.region_process import region_process
from bul.testing.request_load import RequestLoad
from bul.testing.waiting import eventually

KEY = "bul-operator"
FAST = {
    "BUL_TIMED_PREFILL_TOKENS_PER_S": "3000",
    "BUL_SCALE_INTERVAL_S": "0.5",
    "BUL_SCALE_COOLDOWN_UP_S": "1",
    "BUL_SCALE_PRICE_PER_REPLICA_HOUR": "3600",
}


@pytest.mark.slow
async def test_the_page_follows_a_region_that_scales(tmp_path: Path) -> None:
    flags = ["--replicas", "1", "--max-replicas", "2"]
    async with (
        region_process(tmp_path, *flags, environ=FAST) as region,
        running_browser() as chromium,
    ):
        url = (await region.wait_for("ready"))["url"]
        await region.wait_for("opening_answered")
        page, errors = await open_page(chromium, f"{url}/dashboard")
        rows, load_now = page.locator("#replicas tr"), page.locator("#requests_per_second")

        async def shows(replicas: int) -> bool:
            return await rows.count() == replicas

        async def shows_load() -> bool:
            text = await load_now.inner_text()
            return text[0].isdigit() and float(text) > 1

        await eventually("one replica is shown", lambda: shows(1))
        async with RequestLoad(url, clients=24, max_tokens=8) as load:
            await eventually("the load is shown", shows_load, 30)
            # A replica that the scaler has added comes in by itself, with the reason why.
            await eventually("two replicas are shown", lambda: shows(2), 30)
            await page.wait_for_selector("#decisions b.up")
        assert load.lost == []
        assert (await page.locator("#cost").inner_text()).startswith("Cost: 7200.00 an hour now, ")
        assert await page.locator("#decisions li").first.inner_text() != ""
        assert await page.locator(".card").count() == 7
        # By keyboard: a decision is chosen, and its line on the curve stands out.
        await page.locator("#decisions button").first.focus()
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#load-chart .mark.on", state="attached")
        labels = await page.locator("svg[role=img]").evaluate_all(
            "all => all.map(one => one.getAttribute('aria-label'))"
        )
        assert len(labels) == 8
        assert all(labels)
        narrow, more = await open_page(chromium, f"{url}/dashboard", width=390, dark=True)
        await narrow.wait_for_selector("#replicas tr")
        assert await narrow.evaluate("document.documentElement.scrollWidth") <= 390
        # There rows are boxes: nothing of a table is out of sight, and it is still a table.
        boxes = await narrow.locator(".scroll").evaluate_all(
            "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
        )
        assert boxes == 0
        assert await narrow.get_by_role("row").count() > 2
        assert errors + more == []
        region.send(signal.SIGTERM)
        await region.ended()
    engine = open_database(sqlite_url(tmp_path / ".bul" / "accounts.db"))
    kept = [row for _, row in read_decisions(engine)]
    engine.dispose()
    up = [one for one in kept if one.direction == "up"]
    assert [(one.replicas_before, one.replicas, one.acted) for one in up] == [(1, 2, True)]
    assert up[0].reason


@pytest.mark.slow
async def test_a_closed_region_shows_no_figure_before_the_key(tmp_path: Path) -> None:
    (tmp_path / "operator.key").write_text(KEY, encoding="utf-8")
    (tmp_path / "bul.toml").write_text(
        f'[keys]\n"operator" = "{hash_key(KEY)}"\n[scale]\nkey_file = "operator.key"\n',
        encoding="utf-8",
    )
    async with region_process(tmp_path, "--replicas", "1") as region, running_browser() as chromium:
        url = (await region.wait_for("ready"))["url"]
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/dashboard/data")).status_code == httpx.codes.UNAUTHORIZED
            shell = await client.get("/dashboard")
            assert "default-src 'none'" in shell.headers["content-security-policy"]
        page, _ = await open_page(chromium, f"{url}/dashboard")
        await page.wait_for_selector("#door:not([hidden])")
        assert await page.locator("#replicas tr").count() == 0
        await page.fill("#key", KEY)
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#replicas tr")

        async def has_figures() -> bool:
            return await page.locator("#memory_utilization").inner_text() != "no data"

        await eventually("replicas are asked with the operator's key", has_figures)
