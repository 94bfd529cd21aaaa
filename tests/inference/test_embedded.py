from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

import pytest

from bul.config import ServeConfig
from bul.errors import ConfigError, EngineClosed, ModelUnavailable
from bul.inference.contract import ModelCore, Sampling
from bul.inference.embedded import EmbeddedCore
from bul.testing.exactness import generate_greedy
from bul.testing.tiny_gguf import TINY_CONTEXT_TOKENS


class MakeCore(Protocol):
    def __call__(
        self, *, slots: int = 4, context_tokens: int = 1024, threads: int = 1
    ) -> EmbeddedCore: ...


def tokens_of(seed: int, count: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(3, 259) for _ in range(count)]


def sampled(core: EmbeddedCore, sampling: Sampling, count: int = 12) -> list[int]:
    core.clear(0)
    core.prefill(0, tokens_of(1, 20), 0)
    core.start_sampling(0, sampling)
    output = [core.sample(0)]
    for at in range(count - 1):
        core.decode([(0, output[-1], 20 + at)])
        output.append(core.sample(0))
    return output


def test_it_is_a_model_core(core: EmbeddedCore) -> None:
    contract: ModelCore = core
    assert contract.engine_name == "embedded"
    assert contract.model_id == "tiny"
    assert contract.block_bytes == 2 * 2 * 64 * 128


def test_each_slot_of_a_batch_is_sampled_from_its_own_logits(core: EmbeddedCore) -> None:
    prompts = [tokens_of(seed, 10 + seed) for seed in range(4)]
    alone = [generate_greedy(core, 0, prompt, 6) for prompt in prompts]
    outputs: list[list[int]] = []
    for slot, prompt in enumerate(prompts):
        core.clear(slot)
        core.prefill(slot, prompt, 0)
        core.start_sampling(slot, Sampling())
        outputs.append([core.sample(slot)])
    for step in range(5):
        order = (2, 0, 3, 1) if step % 2 else (1, 3, 0, 2)
        core.decode([(slot, outputs[slot][-1], len(prompts[slot]) + step) for slot in order])
        for slot in order:
            outputs[slot].append(core.sample(slot))
    assert outputs == alone
    assert len({tuple(output) for output in outputs}) == 4


def test_a_subset_of_the_slots_may_decode(core: EmbeddedCore) -> None:
    expected = generate_greedy(core, 0, tokens_of(5, 30), 4)
    for slot in (1, 3):
        core.prefill(slot, tokens_of(5, 30), 0)
        core.start_sampling(slot, Sampling())
        assert core.sample(slot) == expected[0]
    core.decode([(3, expected[0], 30)])
    assert core.sample(3) == expected[1]
    core.decode([(1, expected[0], 30)])
    assert core.sample(1) == expected[1]


def test_equal_seeds_give_equal_tokens_and_other_seeds_others(core: EmbeddedCore) -> None:
    hot = Sampling(temperature=1.5, top_p=0.95, seed=7)
    other = Sampling(temperature=1.5, top_p=0.95, seed=8)
    assert sampled(core, hot) == sampled(core, hot)
    assert sampled(core, hot) != sampled(core, other)


@pytest.mark.parametrize("seed", [0, 2**32 - 2, 2**32 - 1, 2**32, 2**63])
def test_every_seed_repeats(core: EmbeddedCore, seed: int) -> None:
    hot = Sampling(temperature=2.0, seed=seed)
    assert sampled(core, hot) == sampled(core, hot)


def test_no_seed_is_a_random_one(core: EmbeddedCore) -> None:
    runs = {tuple(sampled(core, Sampling(temperature=3.0))) for _ in range(5)}
    assert len(runs) == 5


def test_greedy_ignores_the_seed(core: EmbeddedCore) -> None:
    assert sampled(core, Sampling(seed=1)) == sampled(core, Sampling(seed=2))


def test_a_tiny_top_p_is_greedy(core: EmbeddedCore) -> None:
    narrow = Sampling(temperature=1.0, top_p=1e-6, seed=3)
    assert sampled(core, narrow) == sampled(core, Sampling())


def test_a_cleared_slot_starts_anew(core: EmbeddedCore) -> None:
    prompt = tokens_of(2, 100)
    fresh = generate_greedy(core, 0, prompt, 4)
    generate_greedy(core, 0, tokens_of(3, 200), 4)
    assert generate_greedy(core, 0, prompt, 4) == fresh


def test_the_last_position_of_the_context_can_be_used(make_core: MakeCore) -> None:
    core = make_core(slots=2, context_tokens=128)
    assert len(generate_greedy(core, 1, tokens_of(4, 120), 9)) == 9
    with pytest.raises(AssertionError):
        core.decode([(1, 5, 128)])


def test_a_gap_between_positions_is_our_own_mistake(core: EmbeddedCore) -> None:
    core.prefill(0, tokens_of(1, 10), 0)
    with pytest.raises(AssertionError, match="slot 0 ends at 10, not at 11"):
        core.prefill(0, [5], 11)


def test_sampling_a_slot_that_was_not_computed_is_our_own_mistake(core: EmbeddedCore) -> None:
    core.prefill(0, tokens_of(1, 10), 0)
    core.start_sampling(1, Sampling())
    with pytest.raises(AssertionError, match="slot 1 was not in the last call"):
        core.sample(1)


def test_closing_twice_is_harmless_and_a_closed_engine_says_so(core: EmbeddedCore) -> None:
    core.close()
    core.close()
    with pytest.raises(EngineClosed):
        core.prefill(0, [5], 0)
    with pytest.raises(EngineClosed):
        core.export_blocks(0, 0, 0)


def test_a_thread_that_tokenises_survives_the_close(core: EmbeddedCore) -> None:
    core.close()
    assert core.token_bytes(core.tokenize("a", special=False)[0]) == b"a"


def test_a_token_that_does_not_exist_leaves_the_slot_as_it_was(core: EmbeddedCore) -> None:
    expected = generate_greedy(core, 1, tokens_of(1, 10), 3)
    with pytest.raises(ValueError, match="invalid input batch"):
        core.prefill(0, [5, 10**6], 0)
    assert generate_greedy(core, 0, tokens_of(1, 10), 3) == expected


def test_a_context_longer_than_the_models_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    serve = ServeConfig(slots=1, context_tokens=TINY_CONTEXT_TOKENS + 1)
    with pytest.raises(ConfigError, match=r"serve.context_tokens must be in \[128, 4096\]"):
        EmbeddedCore(tiny_model, serve, digests=tmp_path)


def test_a_file_cut_short_is_refused_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    whole = tiny_model.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelUnavailable, match="cannot be loaded") as caught:
        EmbeddedCore(cut, ServeConfig(), digests=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_identity_names_file_processor_and_rope(core: EmbeddedCore) -> None:
    identity = core.identity
    assert len(identity.weights) == 64
    assert identity.kv_dtype == "f16"
    assert identity.prefill_call_tokens == identity.block_tokens == 64
    assert "freq_base" in identity.rope
    assert "cyllama" in identity.engine
    assert identity.instruction_set


def test_the_identity_is_the_same_for_other_threads_slots_and_contexts(
    make_core: MakeCore,
) -> None:
    first = make_core(slots=2, context_tokens=512)
    second = make_core(slots=4, threads=2)
    assert first.identity.digest() == second.identity.digest()
