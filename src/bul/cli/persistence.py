"""What `bul up` and `bul demo` keep on disk: one folder for all replicas, on unless told otherwise.

Refuses to fill a laptop's disk: a budget that nobody named is the smaller of 4 GiB and a tenth of
what the file system could give it. Refuses to start for want of a cache that nobody asked for:
then one line says what is wrong and what to do, and KV stays in RAM.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from bul.cli.cache_engine import cache_folder
from bul.config import Settings
from bul.errors import TierUnavailable

__all__ = ["Persistence", "default_budget", "occupied_bytes", "persistence"]

BUDGET_BYTES_MAX = 4 << 30
BUDGET_BYTES_MIN = 64 << 20
"""Some 40 blocks of the built-in model: less is not worth a disk tier."""
FREE_SHARE = 0.1
OFF_HINT = "or start with --no-persistence"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Persistence:
    """changes: settings of every replica, "section.field" -> value. problem: "" or one line."""

    changes: dict[str, object]
    problem: str = ""


def default_budget(free_bytes: int, used_bytes: int) -> int | None:
    """`disk_bytes_max` where none is set; None if there is too little room for a disk tier.

    used_bytes: what the folder occupies already, so that a full cache does not shrink its own
    budget at every start.
    """
    budget = min(BUDGET_BYTES_MAX, int((free_bytes + used_bytes) * FREE_SHARE))
    return budget if budget >= BUDGET_BYTES_MIN else None


def persistence(settings: Settings, state: Path) -> Persistence:
    """What replicas of a region in the state folder `state` are told. Makes the cache's folder.

    Raises TierUnavailable if persistence was asked for and its folder cannot be used.
    """
    asked = settings.origin("cache.enable_persistence") != "default"
    if asked and not settings.cache.enable_persistence:
        return Persistence(changes={})
    folder = cache_folder(settings) if settings.cache.persistence_dir else state / "cache"
    try:
        changes = _changes(settings, folder)
    except TierUnavailable as error:
        if asked:
            raise
        return Persistence(changes={}, problem=f"KV is kept in RAM only: {error}")
    return Persistence(changes=changes)


def _changes(settings: Settings, folder: Path) -> dict[str, object]:
    _make(folder)
    changes: dict[str, object] = {
        "cache.enable_persistence": True,
        "cache.persistence_dir": str(folder.resolve()),
    }
    system = os.statvfs(folder)
    free, used = system.f_bavail * system.f_frsize, occupied_bytes(folder)
    told = settings.origin("cache.disk_bytes_max") != "default"
    budget = settings.cache.disk_bytes_max if told else default_budget(free, used)
    if budget is None or free + used < min(budget, BUDGET_BYTES_MIN):
        hint = f"free space, name another folder with --persistence-dir, {OFF_HINT}"
        raise TierUnavailable(f"too little room is left on the disk of {folder}", hint=hint)
    changes["cache.disk_bytes_max"] = budget
    return changes


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(probe)
    except OSError as error:
        hint = f"mend it, name another folder with --persistence-dir, {OFF_HINT}"
        message = f"the disk cache cannot use {folder}: {error.strerror}"
        raise TierUnavailable(message, hint=hint) from error


def occupied_bytes(folder: Path) -> int:
    """What `du` would say of the files below `folder`, which others may be changing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(parent) / name).st_blocks * 512
            except FileNotFoundError:  # a replica of another region has just dropped it
                continue
    return total
