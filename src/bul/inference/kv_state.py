"""llama.cpp's state of one sequence, as a file, cut into blocks and joined from them.

Refuses to guess: the header of a state is fully known before it is read (slot, cells, layers, row
bytes), so it is built here and compared; one surprising byte is `BlockCorrupted`.

The state of a sequence of n cells in slot s of S streams (`kv_unified=False`, flash attention on):

    prefix              12 bytes, the same for every state of a build ("qsgg", version, 0 tokens)
    <I  S               then s zero counts for the empty streams before this one
    <I  n               then per cell <3i (position, 1, s)
    <2I (0, layers)     0: V is not transposed
    2 x layers sections, K of every layer and then V: <iQ (type, row bytes), n rows
    <I  0               for each empty stream after this one

A block is [layers, K/V, tokens, row]: of each section, `tokens` whole rows. Both directions are
scattered reads and gathered writes of such runs of rows between the file (in memory, where the
system has it) and the blocks' own buffers. The file and not `get_state_seq_data`, because that
allocates the whole state anew each time while it holds the interpreter: 60-120 ms for 20 MB
against 10.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from bul.blocks.prefix import Buffer
from bul.errors import BlockCorrupted, ModelUnavailable

__all__ = ["PREFIX_BYTES", "KvLayout", "StateFile", "learn_layout"]

PREFIX_BYTES: Final = 12
_SECTION: Final = struct.Struct("<iQ")
_RUNS_MAX: Final = 512
"""Buffers in one scattered read; systems allow 1,024."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KvLayout:
    """What all states of one context share. `row_bytes`: K (or V) of one token in one layer."""

    streams: int
    layers: int
    kv_type: int
    row_bytes: int
    block_tokens: int

    @property
    def run_bytes(self) -> int:
        """Rows of one block in one section."""
        return self.block_tokens * self.row_bytes

    @property
    def block_bytes(self) -> int:
        return 2 * self.layers * self.run_bytes

    @property
    def section_header(self) -> bytes:
        return _SECTION.pack(self.kv_type, self.row_bytes)

    def section_bytes(self, cells: int) -> int:
        return _SECTION.size + cells * self.row_bytes

    def header(self, slot: int, cells: int) -> bytes:
        """From the stream count up to the first section, positions being 0, 1, 2, ..."""
        meta = np.empty((cells, 3), "<i4")
        meta[:, 0] = np.arange(cells)
        meta[:, 1] = 1
        meta[:, 2] = slot
        counts = struct.pack(f"<{slot + 2}I", self.streams, *(0,) * slot, cells)
        return counts + meta.tobytes() + struct.pack("<2I", 0, self.layers)

    def trailer(self, slot: int) -> bytes:
        """The zero counts of the streams after `slot`."""
        return bytes(4 * (self.streams - 1 - slot))

    def run_at(self, section: int, block: memoryview) -> memoryview:
        """The part of `block` that lies in `section` (K of all layers, then V of all)."""
        kv, layer = divmod(section, self.layers)
        start = (layer * 2 + kv) * self.run_bytes
        return block[start : start + self.run_bytes]


def learn_layout(state: bytes, *, streams: int, cells: int, block_tokens: int) -> KvLayout:
    """The layout of the context that saved `state`: the file of slot 0 with `cells` cells.

    Raises ModelUnavailable when the state is not exactly what the module's picture says: a model
    with a sliding window, K and V rows of different sizes, another version of llama.cpp.
    """
    body = state[PREFIX_BYTES:]
    at = 8 + 12 * cells  # the stream count, the cell count, the cells
    if len(body) < at + 8 + _SECTION.size:
        raise _unknown_layout()
    (layers,) = struct.unpack_from("<I", body, at + 4)
    kv_type, row_bytes = _SECTION.unpack_from(body, at + 8)
    layout = KvLayout(
        streams=streams,
        layers=layers,
        kv_type=kv_type,
        row_bytes=row_bytes,
        block_tokens=block_tokens,
    )
    section, first = layout.section_bytes(cells), at + 8
    end = first + 2 * layers * section
    if len(body) != end + len(layout.trailer(0)) or body[:first] != layout.header(0, cells):
        raise _unknown_layout()
    heads = {body[start : start + _SECTION.size] for start in range(first, end, section)}
    if heads != {layout.section_header} or body[end:] != layout.trailer(0):
        raise _unknown_layout()
    return layout


def _unknown_layout() -> ModelUnavailable:
    return ModelUnavailable(
        "this model's KV state has a layout that BUL cannot cut into blocks",
        hint="use a plain attention model, such as the built-in one",
    )


class StateFile:
    """One state at a time, in a file that llama.cpp saves to and loads from by `path`.

    Not thread-safe. Emptied after each use, so that nothing stays in memory.
    """

    def __init__(self, *, in_memory: bool = hasattr(os, "memfd_create")) -> None:
        self._in_memory = in_memory
        if in_memory:
            self._fd = os.memfd_create("bul-kv-state")
            self.path = f"/proc/self/fd/{self._fd}"
        else:
            self._fd, self.path = tempfile.mkstemp(prefix="bul-kv-state-")

    def read_all(self) -> bytes:
        """The whole file; for small states only."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def read_blocks(
        self, layout: KvLayout, slot: int, cells: int, first: int, last: int
    ) -> list[Buffer]:
        """Blocks [first, last) of the saved state of `slot`, which holds `cells` cells.

        Raises BlockCorrupted when the file is not such a state.
        """
        header, trailer = layout.header(slot, cells), layout.trailer(slot)
        base = PREFIX_BYTES + len(header)
        end = base + 2 * layout.layers * layout.section_bytes(cells)
        self._expect(os.fstat(self._fd).st_size == end + len(trailer), "size")
        self._expect(os.pread(self._fd, len(header), PREFIX_BYTES) == header, "header")
        self._expect(os.pread(self._fd, len(trailer), end) == trailer, "end")
        # np.empty and not bytearray: the pages are touched once, by the read, not zeroed before.
        blocks = [np.empty(layout.block_bytes, np.uint8).data for _ in range(first, last)]
        for section in range(2 * layout.layers):
            at = base + section * layout.section_bytes(cells)
            head = os.pread(self._fd, _SECTION.size, at)
            self._expect(head == layout.section_header, f"section {section}")
            runs = [layout.run_at(section, block) for block in blocks]
            self._read_runs(runs, at + _SECTION.size + first * layout.run_bytes)
        return [block.toreadonly() for block in blocks]

    def write_blocks(
        self, layout: KvLayout, prefix: bytes, slot: int, blocks: Sequence[Buffer]
    ) -> None:
        """Write the state that makes `slot` hold `blocks`, from position 0."""
        cells = len(blocks) * layout.block_tokens
        views = [memoryview(block).cast("B") for block in blocks]
        self.empty()
        at = self._write([memoryview(prefix), memoryview(layout.header(slot, cells))], 0)
        head = memoryview(layout.section_header)
        for section in range(2 * layout.layers):
            at = self._write([head, *(layout.run_at(section, view) for view in views)], at)
        self._write([memoryview(layout.trailer(slot))], at)

    def empty(self) -> None:
        """Give the memory back."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the file; the object is of no use afterwards."""
        os.close(self._fd)
        if not self._in_memory:
            Path(self.path).unlink()

    def _read_runs(self, runs: Sequence[memoryview], at: int) -> None:
        for start in range(0, len(runs), _RUNS_MAX):
            part = runs[start : start + _RUNS_MAX]
            wanted = sum(map(len, part))
            self._expect(os.preadv(self._fd, part, at) == wanted, "rows")
            at += wanted

    def _write(self, parts: Sequence[memoryview], at: int) -> int:
        """Write `parts` one after the other from `at`; return where they end."""
        for start in range(0, len(parts), _RUNS_MAX):
            part = parts[start : start + _RUNS_MAX]
            wanted = sum(map(len, part))
            if os.pwritev(self._fd, part, at) != wanted:
                raise OSError("the KV state could not be written whole: no memory left")
            at += wanted
        return at

    @staticmethod
    def _expect(condition: bool, what: str) -> None:
        if not condition:
            raise BlockCorrupted(f"the engine's KV state has an unexpected {what}")
