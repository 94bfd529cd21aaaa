"""General values over RAM and the slower tiers: what `await engine.get(key)` does.

It refuses to keep a value that is larger than the values' budget, and to raise for a tier's fault.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence

from bul.cache.lane import Lane
from bul.cache.resident import Resident
from bul.cache.value_tiers import Deleted, ValueTiers
from bul.cache.values import StoredValue, ValueStore, check_key, decode, encode
from bul.clock import Clock

__all__ = ["GeneralValues"]

FRESH_S = 1.0
"""How long RAM is believed where other hosts write too; then the newest version is asked for."""


class GeneralValues:
    """`lock` is the engine's. `make_room`: called under it after the values took or gave bytes."""

    def __init__(
        self,
        store: ValueStore,
        lanes: Sequence[Lane],
        resident: Resident,
        *,
        lock: threading.Lock,
        clock: Clock,
        ttl_s: float,
        make_room: Callable[[float], None],
    ) -> None:
        self.store = store
        self._tiers = ValueTiers(lanes, ttl_s=ttl_s, clock=clock)
        self._has_tiers = bool(lanes)
        self._resident = resident
        self._lock = lock
        self._clock = clock
        self._ttl_s = ttl_s
        self._make_room = make_room

    async def get(self, key: str, default: object) -> object:
        """The value, or `default`."""
        check_key(key)
        now_s = self._clock.now_s()
        with self._lock:
            stored = self.store.get(key, now_s)
        if stored is None and self._has_tiers:
            found = await self._tiers.get(key)
            if found is not None and not isinstance(found, Deleted):
                stored = found
                self._keep(key, self._fresh(stored), replace=False)
        elif stored is not None and self._tiers.keeps_versions and now_s >= stored.fresh_until_s:
            stored = await self._newest(key, stored)
        return default if stored is None else decode(stored)

    async def set(self, key: str, value: object) -> bool:
        """Keep it here and queue it for every tier; False if it is too large."""
        check_key(key)
        expires_s = self._clock.now_s() + self._ttl_s if self._ttl_s else 0.0
        stored = encode(value, expires_s=expires_s)
        if self._tiers.keeps_versions:
            stored = dataclasses.replace(self._fresh(stored), version=self._tiers.next_version())
        kept = self._keep(key, stored, replace=True)
        if self._has_tiers and kept:
            self._tiers.set(key, stored)
        elif self._has_tiers:
            await self._tiers.delete(key)
        return kept

    async def delete(self, key: str) -> bool:
        """Whether RAM or a tier had it."""
        check_key(key)
        with self._lock:
            deleted = self.store.delete(key)
            self._resident.reserve(self.store.bytes)
        return await self._tiers.delete(key) or deleted

    async def clear_tiers(self) -> None:
        """Delete all blocks and values of this identity from the slower tiers."""
        await self._tiers.clear()

    def _fresh(self, stored: StoredValue) -> StoredValue:
        fresh_until_s = self._clock.now_s() + FRESH_S
        return dataclasses.replace(stored, fresh_until_s=fresh_until_s)

    async def _newest(self, key: str, stored: StoredValue) -> StoredValue | None:
        """`stored`, or what another host has made of it; a tier that is away changes nothing."""
        found = await self._tiers.get(key, elsewhere=True)
        newest: StoredValue | None = stored
        if found is not None and found.version > stored.version:
            newest = None if isinstance(found, Deleted) else found
        with self._lock:
            current = self.store.peek(key)
            unchanged = current is stored
        if not unchanged:  # somebody here has written meanwhile
            return current
        if newest is not None:
            self._keep(key, self._fresh(newest), replace=True)
        else:
            with self._lock:
                self.store.delete(key)
                self._resident.reserve(self.store.bytes)
        return newest

    def _keep(self, key: str, stored: StoredValue, *, replace: bool) -> bool:
        with self._lock:
            kept = self.store.set(key, stored, replace=replace)
            self._resident.reserve(self.store.bytes)
            self._make_room(self._clock.now_s())
        return kept
