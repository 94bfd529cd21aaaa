"""A tiny llama-architecture model with random weights, written in well under a second.

Refuses to mean anything: it is for exactness tests, where the real engine must give the same
tokens with and without restored blocks; random weights make near-ties likelier, not rarer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bul.errors import ModelUnavailable

__all__ = ["CHATML", "TINY_CONTEXT_TOKENS", "write_tiny_gguf"]

TINY_CONTEXT_TOKENS: Final = 4096
_LAYERS: Final = 2
_WIDTH: Final = 128
_HEADS: Final = 4
_KV_HEADS: Final = 2
_FEED_FORWARD: Final = 256
_CONTROLS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES: Final = ("t h", "th e", "Ġ the", "i n", "Ġ a", "a n", "Ġ s", "e r", "o n", "Ġ w")
_NORMAL, _CONTROL = 1, 3
CHATML: Final = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tiny_gguf(
    path: Path, *, seed: int = 0, template: str = CHATML, add_bos: bool = False
) -> Path:
    """Write the model of `seed` to `path`; equal seeds give equal bytes. Returns `path`.

    2 layers, 2 KV heads of 32, a byte-level vocabulary of 269 tokens, ChatML. A block of 64
    tokens is 32,768 bytes. template: "" for a model without one. add_bos: the tokenizer asks for
    a first token. Raises ModelUnavailable without the `gguf` package.
    """
    try:
        import gguf  # noqa: PLC0415 - a development extra, so not at the top
    except ImportError as error:
        raise ModelUnavailable(
            "the tiny model needs the package gguf", hint="pip install 'bul[dev]'"
        ) from error
    writer = gguf.GGUFWriter(str(path), "llama")
    _add_settings(writer)
    _add_tokenizer(writer, template, add_bos=add_bos)
    _add_tensors(writer, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_settings(writer: Any) -> None:
    writer.add_name("tiny")
    writer.add_context_length(TINY_CONTEXT_TOKENS)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(_tokens()))
    writer.add_file_type(0)


def _add_tokenizer(writer: Any, template: str, *, add_bos: bool) -> None:
    tokens = _tokens()
    kinds = [_CONTROL] * len(_CONTROLS) + [_NORMAL] * (len(tokens) - len(_CONTROLS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(add_bos)
    if template:
        writer.add_chat_template(template)


def _tokens() -> list[str]:
    """Control tokens, the 256 bytes in GPT-2's spelling, the merged pieces."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = range(0x100, 0x100 + 256 - len(printable))
    letters = [chr(code) for code in (*printable, *others)]
    return [*_CONTROLS, *letters, *(merge.replace(" ", "") for merge in _MERGES)]


def _add_tensors(writer: Any, random: np.random.Generator) -> None:
    head = _WIDTH // _HEADS
    shapes = {
        "attn_q": (_WIDTH, _WIDTH),
        "attn_k": (_KV_HEADS * head, _WIDTH),
        "attn_v": (_KV_HEADS * head, _WIDTH),
        "attn_output": (_WIDTH, _WIDTH),
        "ffn_gate": (_FEED_FORWARD, _WIDTH),
        "ffn_up": (_FEED_FORWARD, _WIDTH),
        "ffn_down": (_WIDTH, _FEED_FORWARD),
    }
    ones = np.ones(_WIDTH, np.float32)
    writer.add_tensor("token_embd.weight", _weights(random, (len(_tokens()), _WIDTH)))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", _weights(random, (len(_tokens()), _WIDTH)))
    for layer in range(_LAYERS):
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", _weights(random, shape))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)


def _weights(random: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Normal, scaled so that attention is neither flat nor stuck on one token."""
    scale = np.float32(2.0 / np.sqrt(shape[1]))
    return random.standard_normal(shape, np.float32) * scale
