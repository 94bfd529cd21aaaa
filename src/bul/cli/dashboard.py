"""Mounts the live page on a router: /dashboard, and its data for the operator."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

if typing.TYPE_CHECKING:
    from bul.cli.region_books import Hours
    from bul.config import Settings
    from bul.router.app import Router

__all__ = ["start_dashboard"]

Rows = Callable[[], Sequence[Mapping[str, object]]]


def _none() -> Sequence[Mapping[str, object]]:
    return ()


def _no_hours() -> Hours | None:
    return None


def start_dashboard(
    router: Router,
    settings: Settings,
    *,
    name: str,
    decisions: Rows = _none,
    regions: Rows = _none,
    hours: Callable[[], Hours | None] = _no_hours,
) -> asyncio.Task[None]:
    """Cancel the task to end it. The page itself is open, since it holds no figures.

    hours: what the region's book says, if it has one.
    """
    from bul.clock import SystemClock
    from bul.dashboard.collect import Collector, content_policy, index_page
    from bul.dashboard.page import View
    from bul.router.pages import Page

    view = View(name=name, price_per_replica_hour=settings.scale.price_per_replica_hour or None)
    collector = Collector(
        view, router, clock=SystemClock(), headers=lambda: _operator_header(settings)
    )
    page = index_page()
    safe = b"content-security-policy: " + content_policy(page) + b"\r\n"
    still = b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n"

    def data() -> bytes:
        document = view.document(decisions=decisions(), regions=regions(), hours=hours())
        return msgspec.json.encode(document)

    router.more_pages = {
        b"/dashboard": Page(
            body=lambda: page, kind=b"text/html; charset=utf-8", guarded=False, extra=safe + still
        ),
        b"/dashboard/data": Page(body=data, kind=b"application/json", guarded=True, extra=still),
    }
    return asyncio.get_running_loop().create_task(collector.run())


def _operator_header(settings: Settings) -> Mapping[str, str]:
    """Of the file in [scale] key_file, read anew: it may come after the start."""
    if not settings.scale.key_file:
        return {}
    try:
        key = Path(settings.scale.key_file).read_text(encoding="utf-8").strip()
    except OSError:
        return {}
    return {"authorization": f"Bearer {key}"}
