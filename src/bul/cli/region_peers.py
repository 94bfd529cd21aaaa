"""What the live page says of other regions: asked of this region's own agent, every few seconds.

Refuses to call silence health: while the agent does not answer, every other region is unknown.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Mapping, Sequence

import msgspec

from bul.clock import SystemClock

if typing.TYPE_CHECKING:
    from bul.config import Settings

__all__ = ["RegionPeers", "peer_rows"]

EVERY_S = 5.0
ASK_S = 2.0


class RegionPeers:
    """Nothing to show without a [regions] name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._status: Mapping[str, typing.Any] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Ask now, and again and again."""
        if self._settings.regions.name:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def rows(self) -> Sequence[Mapping[str, object]]:
        """As of the last answer."""
        return peer_rows(self._settings.regions.peer_urls, self._status)

    async def _run(self) -> None:
        from bul.cli.region_store import agent_url
        from bul.regions.auth import Seal
        from bul.regions.node import PeerFailed
        from bul.regions.peer import PeerClient

        config = self._settings.regions
        seal, url = Seal(config.peer_secret, config.name), agent_url(self._settings)
        client = PeerClient(seal, config.name, url, SystemClock(), base="/local/")
        try:
            while True:
                try:
                    answer = await client.ask("status", b"", ASK_S)
                    self._status = msgspec.json.decode(answer, type=dict[str, typing.Any])
                except (PeerFailed, msgspec.MsgspecError):
                    self._status = None
                await asyncio.sleep(EVERY_S)
        finally:
            await client.close()


def peer_rows(
    names: typing.Iterable[str], status: Mapping[str, typing.Any] | None
) -> list[Mapping[str, object]]:
    """One for each other region. status: the agent's, None while it does not answer."""
    if status is None:
        unknown = {"state": "unknown", "rtt_ms": None, "lag_ms": None, "backlog": None}
        return [{"name": name, **unknown} for name in names]
    return [
        {
            "name": name,
            "state": "up" if peer["reachable"] else "out of reach",
            "rtt_ms": peer["rtt_ms"] if peer["reachable"] else None,
            "lag_ms": peer["lag_p99_ms"] if peer["reachable"] else None,
            "backlog": peer["backlog_keys"],
        }
        for name, peer in status["peers"].items()
    ]
