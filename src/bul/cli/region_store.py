"""Wiring of the regions: the store behind a region's agent, and the tier in front of it.

Refuses to start an agent over nothing: a region needs a store that all its replicas share.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, CheckReport, Tier
from bul.errors import ConfigError

if typing.TYPE_CHECKING:
    from bul.config import Settings
    from bul.regions.tier import RegionsTier

__all__ = ["agent_url", "open_regions_tier", "store_opener"]


def agent_url(settings: Settings) -> str:
    """Where a region's own agent listens; replicas are on its machine or reach its address."""
    host = settings.regions.host
    return (
        f"http://[{host}]:{settings.regions.port}"
        if ":" in host
        else (f"http://{host}:{settings.regions.port}")
    )


def open_regions_tier(settings: Settings, identity: bytes) -> RegionsTier:
    """A replica's last tier. Raises ConfigError."""
    from bul.regions.agent import check_config
    from bul.regions.auth import Seal
    from bul.regions.tier import RegionsTier

    config = settings.regions
    check_config(config)
    seal = Seal(config.peer_secret, config.name)
    return RegionsTier(seal, agent_url(settings), identity, timeout_s=1.5 + config.deadline_s)


def store_opener(settings: Settings, folder: Path) -> Callable[[bytes], Tier]:
    """Opens what the region's replicas share, for one identity. folder: the region's state.

    Raises ConfigError if they share nothing.
    """
    from bul.cache.tiers.disk.tier import open_disk_tier
    from bul.cache.tiers.shared import open_shared_tier
    from bul.cli.persistence import persistence

    changes: dict[str, typing.Any] = {
        key.partition(".")[2]: value for key, value in persistence(settings, folder).changes.items()
    }
    config = dataclasses.replace(settings.cache, **changes)
    if not config.enable_persistence and not config.shared_url:
        hint = "leave persistence on, or name a Valkey with shared_url"
        raise ConfigError("the replicas of this region share no store", hint=hint)

    def open_tier(identity: bytes) -> Tier:
        if not config.shared_url:
            return open_disk_tier(config, identity)
        shared = open_shared_tier(config, identity)
        return (
            _Both(shared, open_disk_tier(config, identity)) if config.enable_persistence else shared
        )

    return open_tier


class _Both:
    """The Valkey of all hosts, and this host's disk: written to the first, deleted from both."""

    name = "shared"

    def __init__(self, shared: Tier, disk: Tier) -> None:
        self._shared = shared
        self._disk = disk

    def match(self, keys: Sequence[bytes]) -> int:
        return max(self._shared.match(keys), self._disk.match(keys))

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        found = self._disk.get(keys)
        missing = [at for at, payload in enumerate(found) if payload is None]
        if missing:
            others = self._shared.get([keys[at] for at in missing])
            for at, payload in zip(missing, others, strict=True):
                found[at] = payload
        return found

    def set(self, records: Sequence[BlockRecord]) -> int:
        return self._shared.set(records)

    def delete(self, keys: Sequence[bytes]) -> int:
        return max(self._disk.delete(keys), self._shared.delete(keys))

    def clear(self) -> None:
        self._disk.clear()
        self._shared.clear()

    def stats(self) -> Mapping[str, float]:
        return self._shared.stats()

    def check(self, *, fix: bool = False) -> CheckReport:
        return self._shared.check(fix=fix)

    def close(self) -> None:
        self._disk.close()
        self._shared.close()
