"""Reads block traces: BUL's own JSON lines and Mooncake's, plain or gzipped.

It refuses a damaged line by its number instead of leaving it out: a replay over half a trace would
be a wrong figure. Fields that it does not know are ignored, and `s` and `out` may be missing.

Own format: a header line `{"name", "block", "note"}`, then a line a request: `t` seconds, `in` and
`out` tokens, `ids` one per prefix block (equal id = equal prefix up to and including that block),
`s` session or -1. Mooncake's: no header, `timestamp` in ms, `input_length`, `output_length`,
`hash_ids`, and the tokens of a block come from the caller. The last id may stand for a partial
block; only full blocks count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import pathlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import msgspec

from bul.errors import TraceInvalid

__all__ = ["Trace", "TraceRequest", "read_trace"]

LINE_BYTES_MAX = 64 << 20
TOKENS_MAX = 1 << 40
GZIP_MAGIC = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TraceRequest:
    """One request. `path` holds its full blocks, root first; `session` is "" when unknown."""

    at_s: float
    input_tokens: int
    output_tokens: int
    path: tuple[int, ...]
    session: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Requests in the order of their arrival; `at_s` never falls."""

    name: str
    block_tokens: int
    requests: tuple[TraceRequest, ...]

    @property
    def unique_blocks(self) -> int:
        """Different full blocks: the footprint that a share of capacity refers to."""
        return len({key for request in self.requests for key in request.path})


class _Header(msgspec.Struct):
    block: int
    name: str = ""


class _Line(msgspec.Struct):
    """Either format; the fields of the other are unset."""

    t: float | None = None
    input_own: int | None = msgspec.field(name="in", default=None)
    out: int = 0
    ids: tuple[int, ...] | None = None
    s: int | str | None = None
    timestamp: float | None = None
    input_length: int | None = None
    output_length: int = 0
    hash_ids: tuple[int, ...] | None = None
    block: int | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_header = msgspec.json.Decoder(_Header).decode


def read_trace(path: pathlib.Path, block_tokens: int = 512) -> Trace:
    """The trace in `path`. `block_tokens` is used where no header line gives the block size.

    Raises TraceInvalid, with the line's number, for anything that is not a trace.
    """
    try:
        with _open(path) as stream:
            return _parse(path, stream, block_tokens)
    except (OSError, EOFError) as error:  # gzip raises EOFError for a file cut short
        reason = getattr(error, "strerror", None) or str(error)
        raise TraceInvalid(f"{path}: {reason}") from error


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[BinaryIO]:
    with path.open("rb") as raw:
        zipped = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        raw.seek(0)
        if not zipped:
            yield raw
            return
        try:
            with gzip.open(raw, "rb") as stream:
                yield stream  # type: ignore[misc]  # GzipFile reads like a BinaryIO
        except gzip.zlib.error as error:  # type: ignore[attr-defined]  # re-exported, untyped
            raise TraceInvalid(f"{path}: damaged gzip data ({error})") from error


def _parse(path: pathlib.Path, stream: BinaryIO, block_tokens: int) -> Trace:
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    requests: list[TraceRequest] = []
    at_s = 0.0
    for number, text in _lines(path, stream):
        where = f"{path} line {number}"
        line = _decode(where, text)
        if line.block is not None and line.ids is None and line.hash_ids is None:
            if requests:
                raise TraceInvalid(f"{where}: a header line after the first request")
            name, block_tokens = _header(where, text, name)
            continue
        request = _request(where, line, block_tokens, at_s)
        at_s = request.at_s
        requests.append(request)
    if not requests:
        raise TraceInvalid(f"{path}: no request in the file")
    return Trace(name=name, block_tokens=block_tokens, requests=tuple(requests))


def _lines(path: pathlib.Path, stream: BinaryIO) -> Iterable[tuple[int, bytes]]:
    number = 0
    while text := stream.readline(LINE_BYTES_MAX):
        number += 1
        if len(text) >= LINE_BYTES_MAX:
            raise TraceInvalid(f"{path} line {number}: longer than {LINE_BYTES_MAX} bytes")
        if text.strip():
            yield number, text


def _decode(where: str, text: bytes) -> _Line:
    try:
        return _decode_line(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TraceInvalid(f"{where}: {error}") from error


def _header(where: str, text: bytes, name: str) -> tuple[str, int]:
    try:
        header = _decode_header(text)
    except msgspec.DecodeError as error:
        raise TraceInvalid(f"{where}: {error}") from error
    if not 1 <= header.block <= TOKENS_MAX:
        raise TraceInvalid(f"{where}: block must be at least 1 token, was {header.block}")
    return header.name or name, header.block


def _request(where: str, line: _Line, block_tokens: int, earliest_s: float) -> TraceRequest:
    if line.ids is not None:
        path, at_s, input_tokens, output_tokens = line.ids, line.t, line.input_own, line.out
    elif line.hash_ids is not None:
        at_s = None if line.timestamp is None else line.timestamp / 1000.0
        path, input_tokens, output_tokens = line.hash_ids, line.input_length, line.output_length
    else:
        raise TraceInvalid(f"{where}: neither `ids` nor `hash_ids`")
    if at_s is None or input_tokens is None:
        raise TraceInvalid(f"{where}: the arrival time or the input tokens are missing")
    if not (0 <= input_tokens <= TOKENS_MAX and 0 <= output_tokens <= TOKENS_MAX):
        raise TraceInvalid(f"{where}: tokens must be 0 or more")
    return TraceRequest(
        at_s=max(at_s, earliest_s),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        path=path[: input_tokens // block_tokens],
        session="" if line.s in (None, -1) else str(line.s),
    )
