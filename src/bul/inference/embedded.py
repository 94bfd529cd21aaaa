"""The embedded engine: a GGUF model in this process, through llama.cpp's low-level calls.

Refuses to mix sequences in a prefill call, and to restore bytes that it has not measured.

Each slot is a KV stream of its own (`kv_unified=False`), flash attention is on, and a prefill call
holds one sequence: then a block's bytes depend on identity and tokens alone (DESIGN, Exactness).
Thread count, context size and slots do not change them; the call size does, and is in the identity.

Logits cannot be read through this binding; tokens are drawn through its samplers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from bul.blocks.identity import Identity
from bul.blocks.prefix import Buffer
from bul.config import ServeConfig
from bul.config.paths import cache_dir
from bul.errors import BlockCorrupted, ConfigError, EngineClosed, ModelUnavailable
from bul.inference.binding import llama_cpp
from bul.inference.contract import ChatMessage, Sampling
from bul.inference.fingerprint import file_digest, instruction_set, rope_of
from bul.inference.kv_state import PREFIX_BYTES, KvLayout, StateFile, learn_layout
from bul.inference.model_file import check_gguf
from bul.inference.sampling import Sampler
from bul.inference.vocabulary import Vocabulary

__all__ = ["EmbeddedCore"]

_F16: Final = 1
_FLASH_ATTENTION_ON: Final = 1
_KV_TYPES: Final = {0: "f32", _F16: "f16"}
_CELLS_STEP: Final = 256
"""llama.cpp rounds a stream's cells up to this."""
_PROBE_TOKENS: Final = 2
_DECODE_THREAD_WEIGHT_BYTES: Final = 256 << 20
"""Weights per decode thread: a step of a small model is over before a second thread has woken
(98 MB on 2 cores with 2 replicas: 96 tokens/s each with one thread, 70 with two)."""


class EmbeddedCore:
    """A `ModelCore` on llama.cpp. Not thread-safe but for tokenizer, template and token bytes."""

    engine_name = "embedded"

    def __init__(
        self,
        path: Path,
        serve: ServeConfig,
        *,
        block_tokens: int = 64,
        digests: Path | None = None,
    ) -> None:
        """Load `path`. Raises ModelUnavailable, or ConfigError if the context is too long for it.

        Memory: slots x context_tokens of f16 KV, allocated at once; weights are mapped, so that
        replicas of one machine share them. digests: where the file's digest is remembered, in
        the user's cache folder if None.
        """
        check_gguf(path)
        llama_cpp.disable_logging()
        self.model_id = path.stem
        self.slots = serve.slots
        self.context_tokens = serve.context_tokens
        self.block_tokens = block_tokens
        self._closed = False
        self._lengths = [0] * serve.slots
        self._outputs: dict[int, int] = {}
        self._samplers: dict[int, Sampler] = {}
        self._model = _load_model(path)
        _check_model(self._model, serve, path)
        self._threads = serve.threads or os.cpu_count() or 1
        self._decode_threads = min(
            self._threads, max(1, self._model.size // _DECODE_THREAD_WEIGHT_BYTES)
        )
        self._vocabulary = Vocabulary(self._model)
        self._context = _make_context(self._model, serve, block_tokens)
        self._batch = llama_cpp.LlamaBatch(
            n_tokens=max(block_tokens, serve.slots), embd=0, n_seq_max=1
        )
        self._file = StateFile()
        self._layout, self._prefix = self._probe()
        self.identity = self._name_identity(path, digests or cache_dir() / "digests")

    @property
    def block_bytes(self) -> int:
        """K and V of `block_tokens` tokens in all layers."""
        return self._layout.block_bytes

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text`, after the beginning-of-sequence token if the model wants one."""
        return self._vocabulary.tokenize(text, special=special)

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """The model's chat template applied, with the assistant's opening."""
        return self._vocabulary.render_chat(messages)

    def tokenize_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt of a chat; control tokens spelled out in a content stay plain text."""
        return self._vocabulary.tokenize_chat(messages)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, perhaps part of a character; b"" for control tokens."""
        return self._vocabulary.token_bytes(token)

    def is_end(self, token: int) -> bool:
        """Whether the token ends generation."""
        return self._vocabulary.is_end(token)

    def clear(self, slot: int) -> None:
        """Empty the slot."""
        self._check_open()
        self._context.memory_seq_rm(slot, -1, -1)
        self._lengths[slot] = 0
        self._outputs.pop(slot, None)

    def prefill(self, slot: int, tokens: Sequence[int], position: int) -> None:
        """Compute [position, position + len(tokens)) in one call, at most `block_tokens` tokens.

        `position` must be where the slot ends.
        """
        assert 1 <= len(tokens) <= self.block_tokens, len(tokens)
        last = len(tokens) - 1
        steps = [(slot, token, position + at) for at, token in enumerate(tokens)]
        self._compute(steps, outputs={slot: last}, threads=self._threads)

    def decode(self, steps: Sequence[tuple[int, int, int]]) -> None:
        """One call for several slots: (slot, token, position) each, a slot at most once."""
        outputs = {slot: at for at, (slot, _, _) in enumerate(steps)}
        assert len(outputs) == len(steps), steps
        self._compute(steps, outputs=outputs, threads=self._decode_threads)

    def import_blocks(self, slot: int, blocks: Sequence[Buffer], tokens: Sequence[int]) -> None:
        """Make the slot hold [0, len(blocks) * block_tokens).

        Raises BlockCorrupted for a block of the wrong size, before anything is changed.
        """
        for block in blocks:
            if memoryview(block).nbytes != self.block_bytes:
                raise BlockCorrupted(
                    f"a KV block has {memoryview(block).nbytes} bytes, not {self.block_bytes}",
                    hint="bul cache check --fix",
                )
        assert len(tokens) == len(blocks) * self.block_tokens, (len(tokens), len(blocks))
        assert len(tokens) <= self.context_tokens, len(tokens)
        self.clear(slot)
        if not blocks:
            return
        self._file.write_blocks(self._layout, self._prefix, slot, blocks)
        try:
            self._context.load_state_seq_file(self._file.path, slot, 1)
        except (ValueError, RuntimeError) as error:
            self.clear(slot)
            raise BlockCorrupted(f"the engine refused the KV blocks: {error}") from error
        finally:
            self._file.empty()
        self._lengths[slot] = len(tokens)

    def export_blocks(self, slot: int, first: int, last: int) -> Sequence[Buffer]:
        """Payloads of the full blocks [first, last) of the slot, each a buffer of its own.

        Raises BlockCorrupted when the engine's state is not laid out as it was at the start.
        """
        self._check_open()
        cells = self._lengths[slot]
        assert 0 <= first <= last <= cells // self.block_tokens, (first, last, cells)
        if first == last:
            return []
        self._context.save_state_seq_file(self._file.path, slot, [])
        try:
            return self._file.read_blocks(self._layout, slot, cells, first, last)
        finally:
            self._file.empty()

    def start_sampling(self, slot: int, sampling: Sampling, drawn: int = 0) -> None:
        """Temperature 0 is greedy, no seed a random one."""
        self._check_open()
        self._samplers[slot] = Sampler(sampling, drawn)

    def sample(self, slot: int) -> int:
        """The next token of a slot of the last `prefill` or `decode` call."""
        self._check_open()
        assert slot in self._outputs, f"slot {slot} was not in the last call"
        return self._samplers[slot].sample(self._context, self._outputs[slot])

    def close(self) -> None:
        """Free the KV. Idempotent.

        The weights go with the last reference: another thread may be tokenising right now.
        """
        if self._closed:
            return
        self._closed = True
        self._samplers.clear()
        self._file.close()
        self._batch.close()
        self._context.close()

    def _compute(
        self, steps: Sequence[tuple[int, int, int]], *, outputs: dict[int, int], threads: int
    ) -> None:
        self._check_open()
        self._outputs = {}
        rows = set(outputs.values())
        self._batch.reset()
        ends = {slot: self._lengths[slot] for slot in outputs}
        for at, (slot, token, position) in enumerate(steps):
            assert position == ends[slot], f"slot {slot} ends at {ends[slot]}, not at {position}"
            assert position < self.context_tokens, (slot, position)
            ends[slot] = position + 1
            self._batch.add(token, position, [slot], at in rows)
        self._context.set_n_threads(threads, threads)
        self._context.decode(self._batch)
        for slot, end in ends.items():
            self._lengths[slot] = end
        self._outputs = outputs

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("the embedded engine is closed")

    def _probe(self) -> tuple[KvLayout, bytes]:
        """Compute two tokens, learn how their state is laid out, and leave the slot empty."""
        self._compute([(0, at, at) for at in range(_PROBE_TOKENS)], outputs={0: 1}, threads=1)
        self._context.save_state_seq_file(self._file.path, 0, [])
        state = self._file.read_all()
        self._file.empty()
        self.clear(0)
        layout = learn_layout(
            state, streams=self.slots, cells=_PROBE_TOKENS, block_tokens=self.block_tokens
        )
        return layout, state[:PREFIX_BYTES]

    def _name_identity(self, path: Path, digests: Path) -> Identity:
        layout = self._layout
        build = f"cyllama {metadata.version('cyllama')} ggml {llama_cpp.ggml_version()}"
        return Identity(
            weights=file_digest(path, digests),
            tokenizer=self._vocabulary.digest(),
            adapter="",
            kv_dtype=_KV_TYPES.get(layout.kv_type, f"ggml-{layout.kv_type}"),
            layout=f"[{layout.layers}, 2, {self.block_tokens}, {layout.row_bytes}] C",
            layers=layout.layers,
            row_bytes=layout.row_bytes,
            block_tokens=self.block_tokens,
            rope=rope_of(self._model.metadata()),
            engine=f"llama.cpp {llama_cpp.ggml_commit()} {build}",
            instruction_set=instruction_set(),
            prefill_call_tokens=self.block_tokens,
            flash_attention="on",
        )


def _load_model(path: Path) -> Any:
    params = llama_cpp.LlamaModelParams()
    params.use_mmap = True
    params.n_gpu_layers = 0
    try:
        return llama_cpp.LlamaModel(str(path), params)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        raise ModelUnavailable(
            f"{path} cannot be loaded as a GGUF model", hint="the file may be damaged or cut short"
        ) from error


def _check_model(model: Any, serve: ServeConfig, path: Path) -> None:
    """Refuse, by name, what the block layout and the causal cuts cannot hold."""
    if model.has_encoder() or model.is_recurrent() or model.is_hybrid():
        raise ModelUnavailable(f"{path} is not a decoder-only attention model")
    if serve.context_tokens > model.n_ctx_train:
        raise ConfigError(
            f"serve.context_tokens must be in [128, {model.n_ctx_train}] for {path.name}, "
            f"was {serve.context_tokens}"
        )


def _make_context(model: Any, serve: ServeConfig, block_tokens: int) -> Any:
    params = llama_cpp.LlamaContextParams()
    stream_cells = -(-serve.context_tokens // _CELLS_STEP) * _CELLS_STEP
    params.n_ctx = serve.slots * stream_cells
    params.n_seq_max = serve.slots
    params.kv_unified = False
    params.flash_attn_type = _FLASH_ATTENTION_ON
    params.type_k = params.type_v = _F16
    params.n_batch = params.n_ubatch = max(block_tokens, serve.slots)
    try:
        return llama_cpp.LlamaContext(model, params)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ModelUnavailable(
            "the engine cannot make room for its KV",
            hint="lower serve.slots or serve.context_tokens",
        ) from error
