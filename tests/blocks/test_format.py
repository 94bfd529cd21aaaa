"""The byte format: what goes in comes out, and anything else is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bul.blocks.format import (
    DEAD_MAGIC,
    FOOTER_BYTES,
    LAYOUT_VERSION,
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    TOC_DTYPE,
    BlockHeader,
    SegmentHeader,
    encode_footer,
    encode_record_header,
    encode_segment_header,
    padded,
    parse_footer,
    parse_record_header,
    parse_segment_header,
    payload_checksum,
    payload_matches,
    toc_matches,
)

IDENTITY, KEY, PARENT = b"i" * 32, b"k" * 32, b"p" * 32
PLACE = 0xFFFF_FFFF_FFFF_FF00


def make_header(payload: bytes = b"payload", **changes: object) -> BlockHeader:
    fields: dict[str, object] = {
        "key": KEY,
        "parent": PARENT,
        "identity": IDENTITY,
        "tokens": 64,
        "stored_bytes": len(payload),
        "raw_bytes": len(payload),
        "checksum": payload_checksum(payload),
        "expires_wall_ms": 1_700_000_000_123,
        **changes,
    }
    return BlockHeader(**fields)  # type: ignore[arg-type]  # the fields of a test


def test_a_record_header_comes_back_as_it_was() -> None:
    for header in (make_header(), make_header(parent=b""), make_header(b"", encoding=2)):
        data = encode_record_header(header, PLACE)
        assert len(data) == RECORD_HEADER_BYTES
        assert parse_record_header(data, PLACE) == header


def test_a_record_is_refused_at_another_place() -> None:
    data = encode_record_header(make_header(), PLACE)
    assert parse_record_header(data, PLACE + 64) is None


def test_a_record_can_be_marked_dead_by_its_magic_alone() -> None:
    data = DEAD_MAGIC + encode_record_header(make_header(), PLACE)[len(RECORD_MAGIC) :]
    found = parse_record_header(data, PLACE)
    assert found is not None
    assert found.dead


def test_another_version_is_refused_even_with_a_good_checksum() -> None:
    data = encode_segment_header(SegmentHeader(sequence=1, seed=2, identity=IDENTITY))
    assert parse_segment_header(data) is not None
    newer = data[:8] + (LAYOUT_VERSION + 1).to_bytes(2, "little") + data[10:-16]
    assert parse_segment_header(newer + payload_checksum(newer)) is None


def test_a_segment_header_comes_back_as_it_was() -> None:
    header = SegmentHeader(sequence=7, seed=(1 << 64) - 1, identity=IDENTITY, created_wall_ms=5)
    data = encode_segment_header(header)
    assert len(data) == SEGMENT_HEADER_BYTES
    assert parse_segment_header(data) == header


def test_a_footer_guards_its_table_of_contents() -> None:
    toc = np.zeros(3, TOC_DTYPE)
    toc["offset"] = (128, 512, 1024)
    data = encode_footer(2048, toc, PLACE)
    footer = parse_footer(data, PLACE)
    assert len(data) == FOOTER_BYTES
    assert footer is not None
    assert (footer.toc_offset, footer.rows) == (2048, 3)
    assert toc_matches(footer, toc.tobytes(), PLACE)
    assert not toc_matches(footer, toc.tobytes()[:-64], PLACE)
    assert not toc_matches(footer, toc.tobytes(), PLACE + 1)
    assert parse_footer(data, PLACE + 1) is None


def test_sizes_are_padded_to_the_next_boundary() -> None:
    assert [padded(size) for size in (0, 1, 63, 64, 65)] == [0, 64, 64, 64, 128]


@given(st.binary(max_size=512), st.integers(0, 1 << 64))
def test_no_bytes_make_a_parser_raise(data: bytes, place: int) -> None:
    assert parse_record_header(data, place) is None
    assert parse_segment_header(data) is None
    assert parse_footer(data, place) is None


def read_naively(data: bytes) -> bytes:
    """The control: trusts lengths and content, as a reader without checksums does."""
    stored = int.from_bytes(data[16:24], "little")
    return data[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + stored]


def read_carefully(data: bytes) -> bytes | None:
    header = parse_record_header(data, PLACE)
    if header is None or header.dead or header.key != KEY or header.identity != IDENTITY:
        return None
    payload = data[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + header.stored_bytes]
    return payload if payload_matches(header, payload) else None


def damaged(record: bytes, dice: random.Random) -> bytes:
    """One random damage: a flipped bit, a truncation, a zeroed or swapped stretch."""
    data = bytearray(record)
    kind = dice.randrange(4)
    if kind == 0:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif kind == 1:
        del data[dice.randrange(len(data)) :]
    else:
        start = dice.randrange(len(data) - 1)
        end = min(len(data), start + dice.randrange(1, 512))
        data[start:end] = bytes(end - start) if kind == 2 else data[start:end][::-1]
    return bytes(data)


def test_ten_thousand_random_damages_are_all_misses_and_the_naive_reader_serves_them() -> None:
    dice = random.Random(4)
    payload = dice.randbytes(4096)
    record = encode_record_header(make_header(payload), PLACE) + payload
    served, served_naively = 0, 0
    for _ in range(10_000):
        data = damaged(record, dice)
        if data == record:
            continue
        served += read_carefully(data) is not None
        served_naively += read_naively(data) not in (payload, b"")
    assert served == 0
    assert served_naively > 8_000


def test_the_format_is_documented_with_its_numbers() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/format.md").read_text()
    for number in (RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, FOOTER_BYTES, TOC_DTYPE.itemsize):
        assert f"{number} bytes" in text
    assert f"layout version {LAYOUT_VERSION}" in text
