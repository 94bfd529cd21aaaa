"""Batching decisions, as pure functions: where a prefill is cut, how much is loaded, whose turn.

Refuses any other cut: each full block is one prefill call of its own and the tail one more, so that
a block's bytes depend on identity and tokens alone (DESIGN, Exactness).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["importable_blocks", "next_in_turn", "prefill_end"]


def importable_blocks(prompt_tokens: int, block_tokens: int, matched: int) -> int:
    """Blocks [0, n) to load: all that match, but for one token that must be computed.

    Without a computed token there are no logits to sample from: a prompt of exactly two blocks
    loads one and computes the other, even when both are stored.
    """
    return min(matched, (prompt_tokens - 1) // block_tokens)


def prefill_end(position: int, prompt_tokens: int, block_tokens: int) -> int:
    """The end of the one call that starts at `position`: a whole block, or the tail."""
    assert position % block_tokens == 0, position
    return min(position + block_tokens, prompt_tokens)


def next_in_turn(candidates: Sequence[int], last: int) -> int:
    """Round-robin: the first of `candidates` (slots, ascending, not empty) after `last`."""
    return next((slot for slot in candidates if slot > last), candidates[0])
