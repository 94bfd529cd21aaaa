"""Reads the traces that a load can follow: block traces, and Azure's CSV of lengths.

Refuses a damaged line by its number. The kind is told by content: the first line of a CSV names
its columns.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bul.cache.replay_trace import Trace, TraceRequest, read_trace
from bul.errors import TraceInvalid

__all__ = ["read_any_trace"]

AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
BLOCK_TOKENS = 512
GZIP_MAGIC = b"\x1f\x8b"
TOKENS_MAX = 1 << 24


def read_any_trace(path: Path) -> Trace:
    """The trace in `path`, plain or gzipped. Raises TraceInvalid."""
    try:
        return _read_azure(path) if _is_csv(path) else read_trace(path, BLOCK_TOKENS)
    except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]  # re-exported, untyped
        raise TraceInvalid(f"{path}: {error}") from error


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as raw:
        zipped = raw.read(2) == GZIP_MAGIC
    with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
        for line in stream:
            yield line.decode("utf-8", "replace")


def _is_csv(path: Path) -> bool:
    return next(_lines(path), "").startswith(AZURE_COLUMNS[0])


def _read_azure(path: Path) -> Trace:
    rows = csv.reader(_lines(path))
    header = next(rows)
    if header != AZURE_COLUMNS:
        raise TraceInvalid(f"{path} line 1: columns must be {','.join(AZURE_COLUMNS)}")
    found = [_row(f"{path} line {number}", row) for number, row in enumerate(rows, 2) if row]
    if not found:
        raise TraceInvalid(f"{path}: no request in the file")
    found.sort(key=lambda row: row[0])
    first_s = found[0][0]
    requests = tuple(
        TraceRequest(
            at_s=at_s - first_s,
            input_tokens=prompt_tokens,
            output_tokens=output_tokens,
            path=(),
            session="",
        )
        for at_s, prompt_tokens, output_tokens in found
    )
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    return Trace(name=name, block_tokens=BLOCK_TOKENS, requests=requests)


def _row(where: str, row: list[str]) -> tuple[float, int, int]:
    try:
        stamp, prompt, output = row
        # Azure writes seven digits of a second; Python reads six.
        at_s = datetime.fromisoformat(stamp[:26]).replace(tzinfo=UTC).timestamp()
        lengths = int(prompt), int(output)
    except ValueError as error:
        raise TraceInvalid(f"{where}: {error}") from error
    if not (math.isfinite(at_s) and all(0 <= tokens <= TOKENS_MAX for tokens in lengths)):
        raise TraceInvalid(f"{where}: tokens must be in [0, {TOKENS_MAX}]")
    return at_s, *lengths
