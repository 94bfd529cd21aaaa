"""What lies in a disk tier's folder, for tests that open, copy and damage one.

It refuses to change anything: a crash is a copy of the folder as it lies there now.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from bul.cache.tiers.disk import DiskTier

__all__ = ["IDENTITY", "MIB", "Open", "crash", "segments_of"]

IDENTITY = b"i" * 32
MIB = 1 << 20
Open = Callable[..., DiskTier]
"""A `DiskTier` of an identity (IDENTITY), with options by name."""


def segments_of(folder: Path) -> list[Path]:
    """The segment files, oldest first."""
    return sorted(folder.rglob("*.seg"))


def crash(folder: Path) -> Path:
    """What a kill -9 of everybody leaves: a copy of the folder as it lies there now."""
    after = folder.with_name("after-crash")
    shutil.copytree(folder, after)
    return after
