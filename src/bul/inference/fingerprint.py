"""What the bytes of a model's KV depend on, named for `Identity`: file, processor, rope.

Refuses to trust a name or a version string alone: the model file is known by its SHA-256, which
is remembered beside the model cache by the file's size and times, so that a start stays fast.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bul.errors import ModelUnavailable

__all__ = ["file_digest", "instruction_set", "rope_of"]

_CPUINFO: Final = Path("/proc/cpuinfo")
_FLAGS_LINE: Final = re.compile(r"^(?:flags|Features)\s*:\s*(.*)$", re.MULTILINE)
_ROUNDING_FLAG: Final = re.compile(
    r"sse\w*|ssse3|avx\w*|fma\d?|f16c|bmi\d|amx\w*|asimd\w*|sve\w*|i8mm|bf16|fphp|sme2?|neon"
)
"""Vector units that the engine picks kernels by; others (virtualisation, crypto) do not matter."""


def file_digest(path: Path, remembered_in: Path) -> str:
    """SHA-256 of the file as 64 hex digits, computed once per (path, inode, size, times).

    remembered_in: a folder; one that cannot be written is no error, only slower next time.
    Raises ModelUnavailable when the file cannot be read.
    """
    try:
        stat = path.stat()
        facts = (
            f"{path.resolve()}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
        )
        note = remembered_in / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.sha256"
        known = _remembered(note)
        if known is not None:
            return known
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(f"cannot read {path}: {error.strerror}") from error
    _remember(note, digest)
    return digest


def _remembered(note: Path) -> str | None:
    try:
        text = note.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else None


def _remember(note: Path, digest: str) -> None:
    temporary = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(digest, "ascii")
        temporary.replace(note)
    except OSError:
        return  # a read-only cache folder: the digest is computed again at the next start


def instruction_set(cpuinfo: Path = _CPUINFO) -> str:
    """The architecture and the vector units of this machine, sorted, in one line."""
    try:
        found = _FLAGS_LINE.search(cpuinfo.read_text("utf-8", "replace"))
    except OSError:
        found = None
    flags = found[1].split() if found else [platform.processor()]
    kept = sorted(flag for flag in flags if not found or _ROUNDING_FLAG.fullmatch(flag))
    return " ".join([platform.machine(), *kept])


def rope_of(metadata: Mapping[str, str]) -> str:
    """Every rope setting of a GGUF's metadata, e.g. `llama.rope.freq_base=100000.000000`."""
    settings = (f"{key}={value}" for key, value in sorted(metadata.items()) if ".rope." in key)
    return " ".join(settings)
