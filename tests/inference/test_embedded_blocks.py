from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import pytest

from bul.blocks.prefix import Buffer
from bul.errors import BlockCorrupted
from bul.inference.embedded import EmbeddedCore
from bul.testing.exactness import generate_greedy

BLOCK = 64


class MakeCore(Protocol):
    def __call__(
        self, *, slots: int = 4, context_tokens: int = 1024, threads: int = 1
    ) -> EmbeddedCore: ...


def tokens_of(seed: int, count: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(3, 259) for _ in range(count)]


def compute(core: EmbeddedCore, slot: int, tokens: Sequence[int], position: int = 0) -> None:
    for at in range(position, len(tokens), BLOCK):
        core.prefill(slot, tokens[at : at + BLOCK], at)


def blocks_of(core: EmbeddedCore, slot: int, tokens: Sequence[int]) -> Sequence[Buffer]:
    core.clear(slot)
    compute(core, slot, tokens)
    return core.export_blocks(slot, 0, len(tokens) // BLOCK)


def test_blocks_exported_again_after_import_into_a_fresh_context_are_identical(
    make_core: MakeCore,
) -> None:
    tokens = tokens_of(1, 10 * BLOCK)
    blocks = blocks_of(make_core(), 0, tokens)
    fresh = make_core(slots=3, context_tokens=768)
    fresh.import_blocks(2, blocks, tokens)
    assert fresh.export_blocks(2, 0, 10) == blocks
    assert len({bytes(block) for block in blocks}) == 10


def test_blocks_computed_after_restored_ones_are_those_of_a_run_without(
    make_core: MakeCore,
) -> None:
    tokens = tokens_of(2, 8 * BLOCK)
    blocks = blocks_of(make_core(), 0, tokens)
    for restored in range(1, 8):
        core = make_core(slots=2)
        core.import_blocks(1, blocks[:restored], tokens[: restored * BLOCK])
        compute(core, 1, tokens, restored * BLOCK)
        assert core.export_blocks(1, 0, 8) == blocks, restored


def test_other_slots_that_decode_in_between_do_not_change_a_blocks_bytes(
    core: EmbeddedCore,
) -> None:
    tokens, other = tokens_of(3, 6 * BLOCK), tokens_of(4, 150)
    alone = blocks_of(core, 0, tokens)
    core.clear(0)
    compute(core, 2, other)
    compute(core, 3, other[:50])
    for at in range(0, len(tokens), BLOCK):
        core.prefill(0, tokens[at : at + BLOCK], at)
        step = at // BLOCK
        core.decode([(2, 7, 150 + step), (3, 9, 50 + step)])
    assert core.export_blocks(0, 0, 6) == alone


def test_a_reused_slot_gives_the_same_bytes(core: EmbeddedCore) -> None:
    tokens = tokens_of(5, 3 * BLOCK)
    first = blocks_of(core, 0, tokens)
    generate_greedy(core, 0, tokens_of(6, 500), 20)
    assert blocks_of(core, 0, tokens) == first


@pytest.mark.parametrize("slot", [0, 1, 2, 3])
def test_every_slot_gives_and_takes_the_same_bytes(core: EmbeddedCore, slot: int) -> None:
    tokens = tokens_of(7, 2 * BLOCK)
    first = blocks_of(core, 0, tokens)
    assert blocks_of(core, slot, tokens) == first
    core.import_blocks(slot, first, tokens)
    assert core.export_blocks(slot, 1, 2) == first[1:]


def test_threads_and_context_size_do_not_change_a_blocks_bytes(make_core: MakeCore) -> None:
    tokens = tokens_of(8, 4 * BLOCK)
    expected = blocks_of(make_core(), 0, tokens)
    assert blocks_of(make_core(threads=2), 0, tokens) == expected
    assert blocks_of(make_core(slots=8, context_tokens=2048), 5, tokens) == expected


def test_only_full_blocks_are_exported_and_generated_tokens_do_not_matter(
    core: EmbeddedCore,
) -> None:
    tokens = tokens_of(9, 2 * BLOCK + 30)
    generate_greedy(core, 0, tokens, 20)
    after = core.export_blocks(0, 0, 2)
    assert after == blocks_of(core, 1, tokens[: 2 * BLOCK])
    with pytest.raises(AssertionError):
        core.export_blocks(0, 2, 3)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_block_of_the_wrong_size_is_refused_before_anything_changes(
    core: EmbeddedCore, change: int
) -> None:
    tokens = tokens_of(10, 2 * BLOCK)
    blocks = [bytes(block) for block in blocks_of(core, 0, tokens)]
    wrong = (blocks[1] + b"\0")[: core.block_bytes + change]
    with pytest.raises(BlockCorrupted, match="bytes, not 32768"):
        core.import_blocks(0, [blocks[0], wrong], tokens)
    assert core.export_blocks(0, 0, 2) == blocks  # the slot still holds what it held


def test_importing_nothing_empties_the_slot(core: EmbeddedCore) -> None:
    blocks_of(core, 0, tokens_of(11, BLOCK))
    core.import_blocks(0, [], [])
    core.prefill(0, [5], 0)


def test_another_prompts_blocks_do_change_the_output(core: EmbeddedCore) -> None:
    prompt, other = tokens_of(12, 3 * BLOCK + 20), tokens_of(13, 3 * BLOCK)
    right = generate_greedy(core, 0, prompt, 16)
    own, foreign = blocks_of(core, 2, prompt[: 3 * BLOCK]), blocks_of(core, 3, other)
    assert generate_greedy(core, 1, prompt, 16, own) == right
    assert generate_greedy(core, 1, prompt, 16, foreign) != right


def test_one_flipped_byte_is_accepted_silently_so_that_checksums_are_ours(
    core: EmbeddedCore,
) -> None:
    tokens = tokens_of(14, BLOCK)
    damaged = bytearray(blocks_of(core, 0, tokens)[0])
    damaged[1000] ^= 0x01
    core.import_blocks(1, [damaged], tokens)
    assert core.export_blocks(1, 0, 1) == [damaged]
