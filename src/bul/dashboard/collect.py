"""Looks at the region every few seconds and keeps the view up to date.

Refuses to hold anything up: one look at a time, each replica has `TIMEOUT_S`, and one that does
not answer is shown without figures.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import httpx
import msgspec

from bul.clock import Clock
from bul.dashboard.page import ReplicaView, View

__all__ = ["Collector", "RouterLike", "content_policy", "index_page"]

EVERY_S = 5.0
TIMEOUT_S = 2.0


class ReplicaLike(Protocol):
    """What the router knows of a replica."""

    url: str
    in_flight: int
    requests: int

    @property
    def state(self) -> str: ...


class RouterLike(Protocol):
    """Whoever has the list of replicas."""

    @property
    def replicas(self) -> Sequence[ReplicaLike]: ...


class Collector:
    """headers: called per look, so that a key can change. `run` is a task that ends cancelled."""

    def __init__(
        self,
        view: View,
        router: RouterLike,
        *,
        clock: Clock,
        headers: Callable[[], Mapping[str, str]] = dict,
        every_s: float = EVERY_S,
    ) -> None:
        self._view = view
        self._router = router
        self._clock = clock
        self._headers = headers
        self._every_s = every_s

    async def run(self) -> None:
        """Until cancelled."""
        async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as client:
            while True:
                await self.look(client)
                await asyncio.sleep(self._every_s)

    async def look(self, client: httpx.AsyncClient) -> None:
        """One look at all replicas."""
        found = list(self._router.replicas)
        rows = await asyncio.gather(*(self._row(client, replica) for replica in found))
        self._view.add(self._clock.wall_s(), rows)

    async def _row(self, client: httpx.AsyncClient, replica: ReplicaLike) -> ReplicaView:
        signals = await self._page(client, f"{replica.url}/signals")
        stats = await self._page(client, f"{replica.url}/cache/stats")
        return ReplicaView(
            url=replica.url,
            state=replica.state,
            in_flight=replica.in_flight,
            requests=replica.requests,
            signals=signals,
            parts=None if stats is None else stats.get("parts"),
        )

    async def _page(self, client: httpx.AsyncClient, url: str) -> dict[str, Any] | None:
        try:
            response = await client.get(url, headers=dict(self._headers()))
            if response.status_code != httpx.codes.OK:
                return None
            return msgspec.json.decode(response.content, type=dict[str, Any])
        except (httpx.HTTPError, msgspec.MsgspecError):
            return None


def index_page() -> bytes:
    """The page, whole: it loads nothing but its own data."""
    return importlib.resources.files("bul.dashboard").joinpath("index.html").read_bytes()


def content_policy(page: bytes) -> bytes:
    """Content-Security-Policy: this page's one script, its style, its data, and nothing else."""
    script = page.partition(b"<script>")[2].partition(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ).encode()
