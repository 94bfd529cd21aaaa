"""The identities whose blocks lie in a disk tier's folder, as `explain` compares them.

It refuses to decide anything by them (the blocks' own headers do) and to raise for a damaged file.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

__all__ = ["stored_identities"]

IDENTITIES_MAX = 1000
FILE_BYTES_MAX = 65_536


def stored_identities(root: Path) -> list[dict[str, object]]:
    """The fields of each namespace's identity.json, sorted by folder; damaged ones are left out."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(root.glob("*/identity.json"))[:IDENTITIES_MAX]:
            with contextlib.suppress(OSError, ValueError):
                if path.stat().st_size <= FILE_BYTES_MAX:
                    fields = json.loads(path.read_text())
                    if isinstance(fields, dict):
                        found.append(fields)
    return found
