"""The identities that lie in a disk tier's folder, found without opening any.

Refuses to trust a folder's name or its identity.json alone: where that file is damaged, the first
readable segment says whose it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from bul.blocks.chain import KEY_BYTES
from bul.blocks.format import SEGMENT_HEADER_BYTES, parse_segment_header
from bul.cache.tiers.disk.folder import is_namespace, namespace_name

__all__ = ["Namespace", "namespaces"]

FILE_BYTES_MAX = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Namespace:
    """identity: the digest, None if nothing in the folder tells it. fields: of identity.json.

    problem: "" or what is wrong with identity.json.
    """

    path: Path
    identity: bytes | None
    fields: Mapping[str, object]
    problem: str = ""


def namespaces(root: Path) -> list[Namespace]:
    """Sorted by name. Raises OSError if `root` cannot be listed.

    Without segments and identity.json a folder is what a start left that could not go on: nothing.
    """
    found = sorted(path for path in root.iterdir() if is_namespace(path.name) and path.is_dir())
    return [_namespace(path) for path in found if _holds_anything(path)]


def _holds_anything(path: Path) -> bool:
    return (path / "identity.json").exists() or any(path.glob("*.seg"))


def _namespace(path: Path) -> Namespace:
    fields = _described(path)
    digest = _digest(fields.get("digest"))
    if digest is not None and namespace_name(digest) == path.name:
        return Namespace(path=path, identity=digest, fields=fields)
    problem = f"{path.name}/identity.json: missing or damaged"
    identity = _of_segments(path)
    if identity is None:
        problem += ", and no segment can be read; remove the folder by hand"
    return Namespace(path=path, identity=identity, fields={}, problem=problem)


def _described(path: Path) -> Mapping[str, object]:
    file = path / "identity.json"
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            return {}
        fields = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _digest(text: object) -> bytes | None:
    try:
        digest = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        return None
    return digest if len(digest) == KEY_BYTES else None


def _of_segments(path: Path) -> bytes | None:
    for file in sorted(path.glob("*.seg")):
        try:
            with file.open("rb") as opened:
                header = parse_segment_header(opened.read(SEGMENT_HEADER_BYTES))
        except OSError:
            continue
        if header is not None and namespace_name(header.identity) == path.name:
            return header.identity
    return None
