"""Who belongs to the region: a static list, replicas that join by themselves, names that resolve.

Refuses to decide who is well: that is for probes. Refuses more than `members_max` of those who come
by themselves, anybody without the operator's key, and words of a process that has been replaced.

A member says that it is there every `ttl_s / TTL_BEATS`; who has been silent for `ttl_s` is out.
It says its epoch, too, which grows from one life of a process to the next on the same address:
what the last life still has to say (a late goodbye, say) does not count any more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec

from bul.errors import ConfigError
from bul.router.http1 import Request, error_response, response
from bul.router.replica import address_of

__all__ = ["PATH", "TTL_BEATS", "Discovery", "Membership", "Resolve", "resolve_name"]

PATH = b"/members"
TTL_BEATS = 4

logger = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to the IP addresses that are there now. Raises OSError."""


class _Word(msgspec.Struct, forbid_unknown_fields=True):
    """What a replica says of itself."""

    url: Annotated[str, msgspec.Meta(max_length=256)]
    epoch: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    leaving: bool = False


@dataclasses.dataclass(slots=True)
class _Member:
    epoch: str
    until_s: float


class Membership:
    """All members, in the order in which they came. on_change gets all URLs; on_reborn one that is
    another process now; on_silent, before on_change, one that is out without a goodbye.
    """

    def __init__(
        self,
        *,
        ttl_s: float,
        members_max: int,
        on_change: Callable[[Sequence[str]], None],
        on_reborn: Callable[[str], None] = lambda _url: None,
        on_silent: Callable[[str], None] = lambda _url: None,
    ) -> None:
        self._ttl_s = ttl_s
        self._members_max = members_max
        self._on_change = on_change
        self._on_reborn = on_reborn
        self._on_silent = on_silent
        self._static: tuple[str, ...] = ()
        self._joined: dict[str, _Member] = {}
        self._resolved: dict[str, tuple[str, ...]] = {}
        self.joins = self.leaves = self.expired = 0

    @property
    def urls(self) -> tuple[str, ...]:
        """Each one once."""
        found = dict.fromkeys(self._static)
        found |= dict.fromkeys(self._joined)
        for urls in self._resolved.values():
            found |= dict.fromkeys(urls)
        return tuple(found)

    def set_static(self, urls: Sequence[str]) -> None:
        """The configured ones from now on. Raises ConfigError; then nothing has changed."""
        before, self._static = self._static, tuple(url.rstrip("/") for url in urls)
        try:
            self._on_change(self.urls)
        except ConfigError:
            self._static = before
            raise

    def set_resolved(self, name: str, urls: Sequence[str]) -> None:
        """What a name resolves to, as far as `members_max` goes."""
        found = tuple(sorted(urls)[: self._members_max])
        if self._resolved.get(name) != found:
            self._resolved[name] = found
            self._on_change(self.urls)

    def clear(self) -> None:
        """Nobody belongs to it any more."""
        self._static, self._joined, self._resolved = (), {}, {}
        self._on_change(())

    def expire(self, now_s: float) -> None:
        """Put out who has been silent for too long."""
        silent = [url for url, member in self._joined.items() if member.until_s <= now_s]
        for url in silent:
            del self._joined[url]
        if silent:
            self.expired += len(silent)
            urls = self.urls
            for url in silent:
                if url not in urls:
                    self._on_silent(url)
            self._on_change(urls)

    def answer(self, request: Request, now_s: float) -> bytes:
        """The response to a request for PATH, whose key is right."""
        close = not request.keep_alive
        if request.method != b"POST":
            return error_response(405, "only POST is allowed here", "bad_method", close=close)
        try:
            word = msgspec.json.decode(request.body, type=_Word)
            address_of(word.url)
        except (msgspec.MsgspecError, ConfigError) as error:
            return error_response(400, str(error), "bad_member", close=close)
        refusal = self._leave(word) if word.leaving else self._join(word, now_s)
        if refusal:
            status, message = refusal
            return error_response(status, message, "not_a_member", close=close)
        body = {"ttl_s": self._ttl_s, "heartbeat_s": self._ttl_s / TTL_BEATS}
        return response(200, msgspec.json.encode(body), close=close)

    def _join(self, word: _Word, now_s: float) -> tuple[int, str] | None:
        """Why not, or None."""
        url = word.url.rstrip("/")
        known = self._joined.get(url)
        if known is not None and known.epoch > word.epoch:
            return 409, "a younger process has this address"
        if known is None and len(self._joined) >= self._members_max:
            return 429, f"there are {self._members_max} members already"
        self._joined[url] = _Member(word.epoch, now_s + self._ttl_s)
        if known is None:
            self.joins += 1
            self._on_change(self.urls)
        elif known.epoch != word.epoch:
            self._on_reborn(url)
        return None

    def _leave(self, word: _Word) -> tuple[int, str] | None:
        url = word.url.rstrip("/")
        known = self._joined.get(url)
        if known is None or known.epoch != word.epoch:
            return 409, "this process is no member"
        del self._joined[url]
        self.leaves += 1
        self._on_change(self.urls)
        return None


class Discovery:
    """Asks again and again what names resolve to. A failed or empty answer changes nothing: that
    a name server is away does not mean that the replicas are.
    """

    def __init__(
        self, names: Sequence[str], members: Membership, *, interval_s: float, resolve: Resolve
    ) -> None:
        self._names = {name: address_of(name) for name in names}
        self._members = members
        self._interval_s = interval_s
        self._resolve = resolve
        self._task: asyncio.Task[None] | None = None
        self.failures = 0

    def start(self) -> None:
        if self._names:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            for name, (host, port) in self._names.items():
                try:
                    async with asyncio.timeout(max(self._interval_s, 1.0)):
                        addresses = await self._resolve(host, port)
                except OSError as error:  # TimeoutError is one
                    self.failures += 1
                    logger.warning("%s does not resolve: %s", name, error)
                    continue
                if addresses:
                    self._members.set_resolved(name, [_url(found, port) for found in addresses])
                else:
                    self.failures += 1
            await asyncio.sleep(self._interval_s)


async def resolve_name(host: str, port: int) -> Sequence[str]:
    """As the system resolves names."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def _url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
