"""A real Chromium for tests, and what its console said.

Refuses to install anything: `tools/test-servers.sh` does.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

__all__ = ["open_page", "running_browser"]


@contextlib.asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """Without a sandbox: tests may run as root, and it sees pages of ours alone."""
    found = shutil.which("chromium")
    assert found, "no chromium: make servers"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            await browser.close()


async def open_page(
    browser: Browser, url: str, *, width: int = 1280, dark: bool = False
) -> tuple[Page, list[str]]:
    """The page, and its console's errors: a list that grows."""
    page = await browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    errors: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(url)
    return page, errors
