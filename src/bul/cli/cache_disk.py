"""The disk tier's folder as `bul cache stats` and `bul cache check` open it: as one more reader.

Refuses a budget of its own, which would evict what the region keeps, and a folder that is none.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterator
from pathlib import Path

from bul.cli.options import setting
from bul.errors import TierUnavailable

if typing.TYPE_CHECKING:
    from bul.cache.tiers.disk.namespaces import Namespace
    from bul.cache.tiers.disk.tier import DiskTier
    from bul.config import Settings

__all__ = ["existing_folder", "folder_option", "named", "opened"]

NO_BUDGET = 1 << 60

folder_option = setting(
    "cache.persistence_dir", "--dir", "--persistence-dir", help="The region's if left out."
)


def existing_folder(settings: Settings) -> Path:
    """The region's folder. Raises TierUnavailable in one line if there is none."""
    from bul.cli.cache_engine import cache_folder

    folder = cache_folder(settings)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        hint = "start here: bul up; or name the folder with --persistence-dir"
        raise TierUnavailable(f"the disk cache {folder} {what}", hint=hint)
    return folder


@contextlib.contextmanager
def opened(folder: Path, identity: bytes) -> Iterator[DiskTier]:
    """One identity's blocks. Raises TierUnavailable."""
    from bul.cache.tiers.disk.tier import DiskTier

    tier = DiskTier(folder, identity, bytes_max=NO_BUDGET, fsync="interval")
    try:
        yield tier
    finally:
        tier.close()


def named(namespace: Namespace) -> str:
    """A name for people: the engine, and enough of the digest to find the folder."""
    engine = namespace.fields.get("engine")
    return f"{namespace.path.name[:12]} ({engine})" if engine else namespace.path.name[:12]
