"""Does a restored prefix change a single token? Pairs of prompts, with and without.

Refuses to compare unlike with unlike: both sides cut their prefill at the same places, since KV
made in calls of another size differs in float noise and may flip a near-tie.

For each pair, which shares its first tokens:

    source    the shared full blocks computed for the first prompt, in slot 0, and exported
    warm      those blocks imported into slot 1, the rest of the second prompt computed
    control   all of the second prompt computed, in slot 0

Warm and control must then give the same greedy tokens. `tamper` swaps blocks on the way in, so
that a test can show that this harness does fail.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bul.blocks.prefix import Buffer
from bul.inference.batching import importable_blocks, prefill_end
from bul.inference.contract import ModelCore, Sampling

__all__ = ["Exactness", "PromptPair", "check_exactness", "generate_greedy", "prompt_pairs"]

_SOURCE_SLOT: Final = 0
_WARM_SLOT: Final = 1
_WORDS: Final = (
    "the harbour was quiet when she counted boats again and nobody knew why seven of them had "
    "gone while rain fell on paper maps that an old captain drew before winter came to town"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PromptPair:
    """Two prompts, as token ids, whose first `shared` tokens are the same."""

    first: Sequence[int]
    second: Sequence[int]
    shared: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Exactness:
    """What was compared. `different`: indices of pairs whose tokens differ."""

    pairs: int
    blocks_restored: int
    tokens_compared: int
    different: tuple[int, ...]


def prompt_pairs(
    core: ModelCore, *, seed: int, count: int, tokens_min: int = 100, tokens_max: int = 250
) -> Iterator[PromptPair]:
    """`count` pairs of random prose, at least one whole block shared; same seed, same pairs."""
    source = random.Random(seed)
    for _ in range(count):
        length = source.randint(tokens_min, tokens_max)
        other = source.randint(tokens_min, tokens_max)
        shared = source.randint(core.block_tokens, min(length, other) - 1)
        first, second = (_prose(core, source, size) for size in (length, other))
        yield PromptPair(first=first, second=[*first[:shared], *second[shared:]], shared=shared)


def check_exactness(
    core: ModelCore,
    pairs: Iterator[PromptPair],
    *,
    output_tokens: int = 8,
    tamper: Callable[[list[Buffer]], list[Buffer]] = lambda blocks: blocks,
) -> Exactness:
    """Run every pair and compare. Uses slots 0 and 1 of `core` and leaves them filled."""
    different, restored, compared = [], 0, 0
    for index, pair in enumerate(pairs):
        blocks = tamper(_source_blocks(core, pair))
        warm = generate_greedy(core, _WARM_SLOT, pair.second, output_tokens, blocks)
        control = generate_greedy(core, _SOURCE_SLOT, pair.second, output_tokens)
        if warm != control:
            different.append(index)
        restored += len(blocks)
        compared += len(control)
    return Exactness(
        pairs=index + 1,
        blocks_restored=restored,
        tokens_compared=compared,
        different=tuple(different),
    )


def generate_greedy(
    core: ModelCore,
    slot: int,
    prompt: Sequence[int],
    output_tokens: int,
    blocks: Sequence[Buffer] = (),
) -> list[int]:
    """`output_tokens` greedy tokens after `prompt`, of which `blocks` are restored, not computed.

    Goes on past an end token, so that every run compares equally many tokens.
    """
    core.clear(slot)
    position = len(blocks) * core.block_tokens
    core.import_blocks(slot, blocks, prompt[:position])
    _compute(core, slot, prompt, position, len(prompt))
    core.start_sampling(slot, Sampling())
    output = [core.sample(slot)]
    while len(output) < output_tokens:
        core.decode([(slot, output[-1], len(prompt) + len(output) - 1)])
        output.append(core.sample(slot))
    return output


def _source_blocks(core: ModelCore, pair: PromptPair) -> list[Buffer]:
    """The shared blocks of the pair, computed for its first prompt."""
    count = importable_blocks(len(pair.second), core.block_tokens, pair.shared // core.block_tokens)
    core.clear(_SOURCE_SLOT)
    _compute(core, _SOURCE_SLOT, pair.first, 0, count * core.block_tokens)
    return list(core.export_blocks(_SOURCE_SLOT, 0, count))


def _compute(core: ModelCore, slot: int, tokens: Sequence[int], position: int, end: int) -> None:
    while position < end:
        stop = prefill_end(position, end, core.block_tokens)
        core.prefill(slot, tokens[position:stop], position)
        position = stop


def _prose(core: ModelCore, source: random.Random, tokens: int) -> list[int]:
    """Exactly `tokens` tokens of random words; every word is at least one token."""
    words = _WORDS.split()
    text = " ".join(source.choice(words) for _ in range(tokens))
    return core.tokenize(text, special=False)[:tokens]
