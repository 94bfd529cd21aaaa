"""Where a region's bytes lie, as its agent sees it: the tier that its replicas share.

Refuses to raise for a tier's fault (that is bytes which are not there), to hold the event loop
while a disk works, and to open a tier for more models than a region can have.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, Tier
from bul.errors import BulError
from bul.regions.catalogue import Entry

__all__ = ["TierStore"]

MODELS_MAX = 16

logger = logging.getLogger(__name__)


class TierStore:
    """open_tier: the shared tier's namespace of one identity; it is closed by `close`."""

    def __init__(self, open_tier: Callable[[bytes], Tier]) -> None:
        self._open_tier = open_tier
        self._tiers: dict[bytes, Tier] = {}
        self._lock = threading.Lock()
        self.failures_total = 0

    async def read(self, entries: Sequence[Entry]) -> list[Buffer | None]:
        if not entries:
            return []
        return await asyncio.to_thread(self._read, list(entries))

    async def write(self, blocks: Sequence[tuple[Entry, Buffer]]) -> list[bool]:
        """Whether each is there now. A value replaces the one before."""
        return await asyncio.to_thread(self._write, list(blocks))

    async def delete(self, entries: Sequence[Entry]) -> None:
        if entries:
            await asyncio.to_thread(self._delete, list(entries))

    def close(self) -> None:
        for tier in self._tiers.values():
            tier.close()
        self._tiers.clear()

    def _read(self, entries: list[Entry]) -> list[Buffer | None]:
        found: list[Buffer | None] = [None] * len(entries)
        for model, positions in _by_model(entries).items():
            try:
                got = self._tier(model).get([entries[at].key for at in positions])
            except (BulError, OSError) as error:
                self._failed(model, error)
                continue
            for at, payload in zip(positions, got, strict=True):
                found[at] = payload
        return found

    def _write(self, blocks: list[tuple[Entry, Buffer]]) -> list[bool]:
        kept = [False] * len(blocks)
        for model, positions in _by_model([entry for entry, _ in blocks]).items():
            records = [_record(*blocks[at]) for at in positions]
            try:
                tier = self._tier(model)
                values = [record.key for record in records if not record.tokens]
                if values:
                    tier.delete(values)
                well = tier.set(records) == len(records)
            except (BulError, OSError) as error:
                self._failed(model, error)
                continue
            for at in positions:
                kept[at] = well
        return kept

    def _delete(self, entries: list[Entry]) -> None:
        for model, positions in _by_model(entries).items():
            try:
                self._tier(model).delete([entries[at].key for at in positions])
            except (BulError, OSError) as error:
                self._failed(model, error)

    def _tier(self, model: bytes) -> Tier:
        with self._lock:
            tier = self._tiers.get(model)
            if tier is None:
                if len(self._tiers) >= MODELS_MAX:
                    raise BulError(f"more than {MODELS_MAX} models in one region")
                tier = self._tiers[model] = self._open_tier(model)
            return tier

    def _failed(self, model: bytes, error: Exception) -> None:
        self.failures_total += 1
        logger.warning("the store of model %s failed: %s", model.hex()[:12], error)


def _record(entry: Entry, payload: Buffer) -> BlockRecord:
    return BlockRecord(
        key=entry.key,
        parent=entry.parent,
        tokens=entry.tokens,
        payload=payload,
        expires_wall_s=entry.expires_wall_ms / 1000,
    )


def _by_model(entries: Sequence[Entry]) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for at, entry in enumerate(entries):
        found.setdefault(entry.model, []).append(at)
    return found
