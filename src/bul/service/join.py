"""Registers this replica with routers, tells them that it lives, and says goodbye.

Refuses to depend on them: a router that is away is asked again, and the replica serves meanwhile.
Refuses to go without a word: on SIGTERM the routers know first, then answers under way finish.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import urllib.parse
from collections.abc import Sequence

import msgspec

from bul.clock import Clock
from bul.errors import ConfigError

__all__ = ["Joiner", "make_epoch"]

PATH = "/members"
TIMEOUT_S = 2.0
RETRY_S = 0.5
RETRY_S_MAX = 5.0
HEARTBEAT_S_MIN = 0.05
HEARTBEAT_S_MAX = 60.0
ANSWER_BYTES_MAX = 16_384

logger = logging.getLogger(__name__)


class _Terms(msgspec.Struct):
    heartbeat_s: float


class _RefusedError(Exception):
    """The router said no; the words are its own."""


def make_epoch(clock: Clock) -> str:
    """Grows from one life of a process to the next, and differs between two of the same moment."""
    return f"{int(clock.wall_s() * 1000):015d}-{secrets.token_hex(8)}"


class Joiner:
    """`start` when requests are taken, `leave` before they are refused. routers: plain URLs.

    secret: the operator's key in clear, "" for none. advertise: "" for the bound address.
    """

    def __init__(
        self, routers: Sequence[str], *, epoch: str, secret: str = "", advertise: str = ""
    ) -> None:
        self._routers = {url.rstrip("/"): _where(url) for url in routers}
        self._epoch = epoch
        self._secret = secret
        self._advertise = advertise
        self._url = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.member_of: set[str] = set()
        """Routers that took this replica in, as far as it knows."""

    def start(self, url: str) -> None:
        """Begin to tell every router that this replica is at `url`."""
        self._url = url
        self._tasks = [asyncio.create_task(self._stay(router)) for router in self._routers]

    async def leave(self) -> None:
        """Say goodbye to all routers at once; returns within TIMEOUT_S whatever they do."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        goodbyes = [self._tell(router, leaving=True) for router in self.member_of]
        await asyncio.gather(*goodbyes, return_exceptions=True)
        self.member_of.clear()

    async def _stay(self, router: str) -> None:
        pause_s = RETRY_S
        while True:
            try:
                heartbeat_s = await self._tell(router)
            except (OSError, EOFError, ValueError, _RefusedError) as error:
                if router in self.member_of or pause_s == RETRY_S:
                    logger.warning("cannot join %s: %s", router, error or type(error).__name__)
                self.member_of.discard(router)
                pause_s = min(pause_s * 2, RETRY_S_MAX)
                await asyncio.sleep(pause_s / 2)
                continue
            self.member_of.add(router)
            pause_s = RETRY_S
            await asyncio.sleep(min(max(heartbeat_s, HEARTBEAT_S_MIN), HEARTBEAT_S_MAX))

    async def _tell(self, router: str, *, leaving: bool = False) -> float:
        """Returns after how many seconds to say it again. Raises what `_stay` catches."""
        host, port = self._routers[router]
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                own = writer.get_extra_info("sockname")[0]
                writer.write(self._request(router, str(own), leaving=leaving))
                answer = await reader.read(ANSWER_BYTES_MAX)
                while more := await reader.read(ANSWER_BYTES_MAX - len(answer)):
                    answer += more
            finally:
                writer.transport.abort()
        head, _, body = answer.partition(b"\r\n\r\n")
        if head[:12] != b"HTTP/1.1 200":
            raise _RefusedError(head[:60].decode("ascii", "replace"))
        return msgspec.json.decode(body, type=_Terms).heartbeat_s

    def _request(self, router: str, own: str, *, leaving: bool) -> bytes:
        url = self._advertise or _reachable(self._url, own)
        body = msgspec.json.encode({"url": url, "epoch": self._epoch, "leaving": leaving})
        key = f"authorization: Bearer {self._secret}\r\n" if self._secret else ""
        host = urllib.parse.urlsplit(router).netloc
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{key}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _reachable(url: str, own: str) -> str:
    """`url`, with the address from which the router was reached in the place of "any"."""
    parts = urllib.parse.urlsplit(url)
    try:
        anywhere = ipaddress.ip_address(parts.hostname or "").is_unspecified
    except ValueError:
        return url
    if not anywhere:
        return url
    return f"http://[{own}]:{parts.port}" if ":" in own else f"http://{own}:{parts.port}"


def _where(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or not port or parts.path.strip("/"):
        raise ConfigError(f"join {url!r} must look like http://127.0.0.1:8000")
    return parts.hostname, port
