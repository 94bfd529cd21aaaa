"""Traces are read exactly or refused by line."""

from __future__ import annotations

import gzip
import json
import pathlib

import pytest

from bul.cache.replay_trace import read_trace
from bul.errors import TraceInvalid

HEADER = '{"name": "small", "block": 4, "note": "made here"}'
OWN = '{"t": 1.5, "in": 9, "out": 3, "ids": [7, 8, 9], "s": 2, "new_field": [1]}'
MOONCAKE = '{"timestamp": 2500, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}'


def _write(folder: pathlib.Path, *lines: str) -> pathlib.Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_only_full_blocks_count_in_the_own_format(tmp_path: pathlib.Path) -> None:
    trace = read_trace(_write(tmp_path, HEADER, OWN))
    assert (trace.name, trace.block_tokens, trace.unique_blocks) == ("small", 4, 2)
    request = trace.requests[0]
    assert (request.at_s, request.input_tokens, request.output_tokens) == (1.5, 9, 3)
    assert (request.path, request.session) == ((7, 8), "2")


def test_mooncake_lines_need_no_header_and_count_milliseconds(tmp_path: pathlib.Path) -> None:
    trace = read_trace(_write(tmp_path, MOONCAKE))
    assert (trace.name, trace.block_tokens) == ("trace", 512)
    assert trace.requests[0].at_s == 2.5
    assert trace.requests[0].path == (0, 1)
    assert read_trace(_write(tmp_path, MOONCAKE), block_tokens=1100).requests[0].path == (0,)


def test_a_gzipped_trace_is_known_by_its_bytes_and_not_by_its_name(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(gzip.compress(f"{HEADER}\n{OWN}\n".encode()))
    assert read_trace(path).unique_blocks == 2


def test_session_and_output_may_be_missing(tmp_path: pathlib.Path) -> None:
    line = '{"t": 0, "in": 4, "ids": [1]}'
    requests = read_trace(_write(tmp_path, HEADER, line, line[:-1] + ', "s": -1}')).requests
    assert [(r.session, r.output_tokens) for r in requests] == [("", 0), ("", 0)]


def test_time_never_runs_backwards(tmp_path: pathlib.Path) -> None:
    early = OWN.replace("1.5", "0.5")
    requests = read_trace(_write(tmp_path, HEADER, OWN, early)).requests
    assert [r.at_s for r in requests] == [1.5, 1.5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (OWN[:-9], "line 3"),
        ("not json", "line 3"),
        ("[1, 2]", "line 3: Expected `object`"),
        ('{"t": 1, "in": 4}', "line 3: neither `ids` nor `hash_ids`"),
        ('{"in": 4, "ids": [1]}', "line 3: the arrival time or the input tokens are missing"),
        ('{"t": 1, "ids": [1]}', "line 3: the arrival time or the input tokens are missing"),
        ('{"t": 1, "in": -1, "ids": [1]}', "line 3: tokens must be 0 or more"),
        ('{"t": 1, "in": 4, "ids": ["a"]}', "line 3: Expected `int`, got `str`"),
        ('{"t": NaN, "in": 4, "ids": [1]}', "line 3"),
        (HEADER, "line 3: a header line after the first request"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: pathlib.Path, line: str, message: str) -> None:
    with pytest.raises(TraceInvalid) as caught:
        read_trace(_write(tmp_path, HEADER, OWN, line))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", HEADER.encode(), b'{"block": 0}\n'])
def test_a_file_without_a_request_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceInvalid):
        read_trace(path)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_gzip_data_is_one_clear_error(tmp_path: pathlib.Path, damage: str) -> None:
    lines = "".join(json.dumps({"t": n, "in": 4, "ids": [n * n]}) + "\n" for n in range(500))
    packed = bytearray(gzip.compress(f"{HEADER}\n{lines}".encode()))
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(packed)
    assert read_trace(path).unique_blocks == 500
    if damage == "cut":
        packed = packed[: len(packed) // 2]
    else:
        packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(TraceInvalid):
        read_trace(path)


def test_a_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceInvalid, match="No such file"):
        read_trace(tmp_path / "nowhere.jsonl")
