"""The other regions as a tier: a replica's last one, behind its region's agent on loopback.

Refuses to wait longer than its timeout, to serve what its record does not vouch for, and to forget
what it has written before the agent knows of it: a purge must find it.

`match` is answered from what the agent knows, without a trip to another region; `get` asks there.
Payloads do not go through here on their way out: the agent reads them from the region's own store.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec
from xxhash import xxh3_64_intdigest

from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, CheckReport
from bul.clock import Clock, SystemClock
from bul.errors import TierUnavailable
from bul.regions import messages as m
from bul.regions.auth import Seal
from bul.regions.versions import tenant_tag

__all__ = ["RegionsTier"]

PENDING_MAX: Final = 65_536
TOLD_AT_ONCE: Final = 1024
TOUCHED_MAX: Final = 16_384
PURGES_S: Final = 0.5
"""How often the agent is asked whether a tenant was purged or a model retired."""

_M = TypeVar("_M", bound=msgspec.Struct)


class RegionsTier:
    """url: of the agent. identity: of the model. on_purge: told when RAM may hold what is dead.

    timeout_s: of one question; the agent's own deadline for other regions is shorter.
    """

    name = "regions"

    def __init__(
        self,
        seal: Seal,
        url: str,
        identity: bytes,
        *,
        timeout_s: float = 1.5,
        clock: Clock | None = None,
    ) -> None:
        self.on_purge: Callable[[], None] = _nothing
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._seal = seal
        self._identity = identity
        self._timeout_s = timeout_s
        self._clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._pending: collections.OrderedDict[bytes, m.Item] = collections.OrderedDict()
        self._touched: set[bytes] = set()
        self._closed = threading.Event()
        self._counts: collections.Counter[str] = collections.Counter()
        self._purges: int | None = None
        self._watcher = threading.Thread(target=self._watch, name="bul-regions", daemon=True)
        self._watcher.start()

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading keys other regions may have, as far as the agent knows."""
        if not keys:
            return 0
        found = self._ask("match", m.Get(list(keys)), m.Wanted)[0].positions
        return min(len(keys), found[0]) if found else 0

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        if not keys:
            return []
        message, records = self._ask("get", m.Get(list(keys)), m.Blocks)
        try:
            found = dict(m.payloads(message.items, records))
        except m.MessageInvalid as error:
            raise TierUnavailable(f"the regions' agent: {error}") from error
        by_key = {item.key: data for item, data in found.items() if item.model == self._identity}
        self._counts["hits_total"] += len(by_key)
        self._counts["misses_total"] += len(keys) - len(by_key)
        return [by_key.get(key) for key in keys]

    def set(self, records: Sequence[BlockRecord]) -> int:
        """Tell the agent that the region's store has these, or will in a moment."""
        items = [self._item(record) for record in records]
        with self._lock:
            for item in items:
                self._pending[item.key] = item
            while len(self._pending) > PENDING_MAX:
                self._pending.popitem(last=False)
                self._counts["untold_blocks_total"] += 1
        self._tell()
        return len(records)

    def delete(self, keys: Sequence[bytes]) -> int:
        """Dead in every region from now on."""
        if not keys:
            return 0
        with self._lock:
            for key in keys:
                self._pending.pop(key, None)
        stones = [m.Stone("key", key, 0) for key in keys]
        return len(self._ask("erase", m.Offer([], stones), m.Wanted)[0].positions)

    def clear(self) -> None:
        """All of this model is dead in every region from now on."""
        with self._lock:
            self._pending.clear()
        self._ask("erase", m.Offer([], [m.Stone("model", self._identity, 0)]), m.Wanted)

    def touch(self, keys: Sequence[bytes]) -> None:
        """A request used these, wherever they lay: a new region fetches the hottest first."""
        with self._lock:
            if len(self._touched) < TOUCHED_MAX:
                self._touched.update(keys)

    def stats(self) -> Mapping[str, float]:
        return {"untold_blocks": float(len(self._pending)), **self._counts}

    def check(self, *, fix: bool = False) -> CheckReport:
        """Nothing lies here."""
        return CheckReport(blocks=0, bytes=0)

    def close(self) -> None:
        """Tell what is left to tell. Idempotent."""
        if self._closed.is_set():
            return
        with contextlib.suppress(TierUnavailable):
            self._tell()
        self._closed.set()
        self._watcher.join(timeout=self._timeout_s)
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _item(self, record: BlockRecord) -> m.Item:
        payload = record.payload
        size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
        return m.Item(
            record.key,
            0,
            self._identity,
            tenant_tag(record.tenant),
            record.parent,
            record.tokens,
            size,
            0 if record.tokens else xxh3_64_intdigest(payload),
            "",
            int(record.expires_wall_s * 1000),
        )

    def _tell(self) -> None:
        """Announce what is pending, oldest first. Raises TierUnavailable; then it stays pending."""
        while True:
            with self._lock:
                items = [item for item, _ in zip(self._pending.values(), range(TOLD_AT_ONCE))]  # noqa: B905 - the shorter one ends it
            if not items:
                return
            self._ask("announce", m.Offer(items, []), m.Wanted)
            with self._lock:
                for item in items:
                    if self._pending.get(item.key) is item:
                        del self._pending[item.key]
            self._counts["told_blocks_total"] += len(items)

    def _watch(self) -> None:
        while not self._closed.wait(PURGES_S):
            with contextlib.suppress(TierUnavailable):
                self._look_for_purges()
                self._tell()
                self._tell_touched()

    def _tell_touched(self) -> None:
        with self._lock:
            touched, self._touched = self._touched, set()
        if touched:
            self._ask("touch", m.Get(list(touched)[: m.ITEMS_MAX]), m.Wanted)

    def _look_for_purges(self) -> None:
        [newest] = self._ask("purges", m.Get([]), m.Wanted)[0].positions
        if self._purges is not None and newest > self._purges:
            self._counts["purges_heard_total"] += 1
            self.on_purge()
        self._purges = newest

    def _ask(self, path: str, message: msgspec.Struct, kind: type[_M]) -> tuple[_M, memoryview]:
        body, path = m.pack(message), f"/local/{path}"
        now_ms = int(self._clock.wall_s() * 1000)
        headers = self._seal.request(self._seal.region, path, body, now_ms)
        try:
            status, answer, mac = self._post(path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise TierUnavailable(f"the regions' agent does not answer: {error!r}") from error
        nonce = headers["x-bul-nonce"]
        sound = self._seal.is_answer(self._seal.region, nonce, status, answer, mac)
        if not sound or status != 200:
            raise TierUnavailable(f"the regions' agent answered {status}, signed: {sound}")
        try:
            return m.unpack(answer, kind)
        except m.MessageInvalid as error:
            raise TierUnavailable(f"the regions' agent: {error}") from error

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """On an idle connection, or on a new one if the agent has closed that meanwhile."""
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            try:
                return self._exchange(kept, path, body, headers)
            except (ConnectionError, http.client.RemoteDisconnected):
                pass  # an agent that was restarted, or that closed what was idle for long
        fresh = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return self._exchange(fresh, path, body, headers)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes,
        headers: dict[str, str],
    ) -> tuple[int, bytes, str]:
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            answer = _read(response)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if not self._closed.is_set():
                self._idle.append(connection)
                return response.status, answer, response.getheader("x-bul-mac") or ""
        connection.close()
        return response.status, answer, response.getheader("x-bul-mac") or ""


def _read(response: http.client.HTTPResponse) -> bytes:
    length = int(response.getheader("content-length") or -1)
    if not 0 <= length <= m.BODY_BYTES_MAX:
        raise http.client.HTTPException("a bad length")
    return response.read(length)


def _nothing() -> None:
    """Nobody keeps anything in RAM."""
