"""The pure decisions, at their boundaries."""

from __future__ import annotations

import pytest

from bul.inference.batching import importable_blocks, next_in_turn, prefill_end


@pytest.mark.parametrize(
    ("prompt", "matched", "expected"),
    [
        (1, 0, 0),
        (64, 1, 0),  # its one block must be computed: a token's logits are needed
        (65, 1, 1),
        (128, 2, 1),
        (129, 2, 2),
        (129, 1, 1),
        (1000, 0, 0),
        (1000, 15, 15),
    ],
)
def test_at_least_one_token_is_computed(prompt: int, matched: int, expected: int) -> None:
    assert importable_blocks(prompt, 64, matched) == expected


@pytest.mark.parametrize(
    ("position", "prompt", "end"),
    [(0, 63, 63), (0, 64, 64), (0, 65, 64), (64, 65, 65), (64, 128, 128), (64, 200, 128)],
)
def test_a_call_is_one_block_or_the_tail(position: int, prompt: int, end: int) -> None:
    assert prefill_end(position, prompt, 64) == end


@pytest.mark.parametrize(
    ("candidates", "last", "expected"),
    [([0], -1, 0), ([0], 0, 0), ([0, 1, 3], 1, 3), ([0, 1, 3], 3, 0), ([1, 2], 2, 1)],
)
def test_turns_go_round(candidates: list[int], last: int, expected: int) -> None:
    assert next_in_turn(candidates, last) == expected
