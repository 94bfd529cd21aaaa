from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bul.blocks.prefix import Buffer
from bul.errors import BlockCorrupted, ModelUnavailable
from bul.inference.kv_state import PREFIX_BYTES, KvLayout, StateFile, learn_layout

LAYOUT = KvLayout(streams=3, layers=2, kv_type=1, row_bytes=4, block_tokens=2)
PREFIX = b"qsgg" + struct.pack("<2I", 2, 0)


def block_of(first: int) -> bytes:
    return bytes((first + at) % 251 for at in range(LAYOUT.block_bytes))


@pytest.fixture(params=[True, False], ids=["in memory", "on disk"])
def file(request: pytest.FixtureRequest) -> Iterator[StateFile]:
    opened = StateFile(in_memory=request.param)
    yield opened
    opened.close()
    assert not Path(opened.path).exists()


def write_raw(file: StateFile, data: bytes) -> None:
    Path(file.path).write_bytes(data)


def test_blocks_come_back_as_they_went_in(file: StateFile) -> None:
    blocks: list[Buffer] = [block_of(0), bytearray(block_of(50)), memoryview(block_of(100))]
    file.write_blocks(LAYOUT, PREFIX, 1, blocks)
    assert file.read_blocks(LAYOUT, 1, 6, 0, 3) == blocks
    assert file.read_blocks(LAYOUT, 1, 6, 1, 2) == blocks[1:2]


def test_the_written_state_is_the_one_in_the_picture(file: StateFile) -> None:
    block = block_of(0)
    file.write_blocks(LAYOUT, PREFIX, 1, [block])
    section = struct.pack("<iQ", 1, 4)
    cells = struct.pack("<6i", 0, 1, 1, 1, 1, 1)
    # [layers, K/V, tokens, row]: K of layer 0 and 1, then V of layer 0 and 1.
    rows = [block[0:8], block[16:24], block[8:16], block[24:32]]
    expected = PREFIX + struct.pack("<3I", 3, 0, 2) + cells + struct.pack("<2I", 0, 2)
    expected += b"".join(section + row for row in rows) + struct.pack("<I", 0)
    assert file.read_all() == expected


def test_a_partial_last_block_is_left_out(file: StateFile) -> None:
    file.write_blocks(LAYOUT, PREFIX, 0, [block_of(0), block_of(9)])
    state = file.read_all()
    learnt = learn_layout(state, streams=3, cells=4, block_tokens=3)
    (block,) = file.read_blocks(learnt, 0, 4, 0, 1)
    assert len(block) == learnt.block_bytes == 2 * 2 * 3 * 4


def test_many_blocks_need_more_than_one_system_call(file: StateFile) -> None:
    blocks = [block_of(at) for at in range(1500)]
    file.write_blocks(LAYOUT, PREFIX, 2, blocks)
    assert file.read_blocks(LAYOUT, 2, 3000, 700, 1500) == blocks[700:]


def test_an_emptied_file_holds_no_memory(file: StateFile) -> None:
    file.write_blocks(LAYOUT, PREFIX, 0, [block_of(0)])
    file.empty()
    assert file.read_all() == b""


def test_exported_blocks_are_read_only_and_own_their_bytes(file: StateFile) -> None:
    file.write_blocks(LAYOUT, PREFIX, 0, [block_of(0), block_of(1)])
    first, second = file.read_blocks(LAYOUT, 0, 4, 0, 2)
    assert memoryview(first).readonly
    assert memoryview(first).obj is not memoryview(second).obj


def test_the_layout_is_learnt_from_a_state(file: StateFile) -> None:
    file.write_blocks(LAYOUT, PREFIX, 0, [block_of(0)])
    assert learn_layout(file.read_all(), streams=3, cells=2, block_tokens=2) == LAYOUT


def test_a_flip_of_any_byte_outside_the_rows_is_noticed(file: StateFile) -> None:
    file.write_blocks(LAYOUT, PREFIX, 1, [block_of(0)])
    state = file.read_all()
    header = PREFIX_BYTES + len(LAYOUT.header(1, 2))
    section = LAYOUT.section_bytes(2)
    starts = [header + at * section for at in range(4)]
    rows = {at for start in starts for at in range(start + 12, start + section)}
    for at in range(PREFIX_BYTES, len(state)):
        flipped = bytearray(state)
        flipped[at] ^= 0x10
        write_raw(file, bytes(flipped))
        if at in rows:  # the control: nobody but a checksum can see these
            assert file.read_blocks(LAYOUT, 1, 2, 0, 1) != [block_of(0)]
        else:
            with pytest.raises(BlockCorrupted):
                file.read_blocks(LAYOUT, 1, 2, 0, 1)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_state_of_another_size_is_noticed(file: StateFile, change: int) -> None:
    file.write_blocks(LAYOUT, PREFIX, 0, [block_of(0)])
    state = file.read_all() + b"\0"
    write_raw(file, state[: len(state) - 1 + change])
    with pytest.raises(BlockCorrupted, match="size"):
        file.read_blocks(LAYOUT, 0, 2, 0, 1)


def test_a_state_that_is_laid_out_otherwise_is_not_learnt(file: StateFile) -> None:
    file.write_blocks(LAYOUT, PREFIX, 0, [block_of(0)])
    state = file.read_all()
    header = PREFIX_BYTES + len(LAYOUT.header(0, 2))
    section = LAYOUT.section_bytes(2)
    places = {
        "transposed V": header - 8,
        "two sequences in a cell": PREFIX_BYTES + 8 + 4,
        "other row bytes in a later section": header + 2 * section + 4,
        "cells in another stream": len(state) - 4,
    }
    for at in places.values():
        changed = bytearray(state)
        changed[at] ^= 1
        with pytest.raises(ModelUnavailable, match="cannot cut into blocks"):
            learn_layout(bytes(changed), streams=3, cells=2, block_tokens=2)


def test_every_truncation_of_a_state_is_not_learnt(file: StateFile) -> None:
    file.write_blocks(LAYOUT, PREFIX, 0, [block_of(0)])
    state = file.read_all()
    for size in range(len(state)):
        with pytest.raises(ModelUnavailable):
            learn_layout(state[:size], streams=3, cells=2, block_tokens=2)
