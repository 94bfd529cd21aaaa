"""Two contracts: `ModelCore`, the thin interface over a model; `Runner`, what the service calls.

`ModelCore` has two implementations from the first day, `embedded.py` (llama.cpp) and `timed.py`
(deterministic text, real block bytes, configurable rates). It is synchronous and used from the
runner's own thread alone; it never sees requests, only slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from typing import Literal, Protocol

from bul.blocks.identity import Identity
from bul.blocks.prefix import Buffer, RequestFacts

__all__ = [
    "ChatMessage",
    "Delta",
    "FinishReason",
    "GenerateRequest",
    "ModelCore",
    "Runner",
    "RunnerLoad",
    "Sampling",
]

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One message, already checked: `role` is one of system, user, assistant, tool."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to choose the next token. temperature 0.0 is greedy; `seed` makes the rest repeatable."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """One sequence to generate. `use_cache=False` neither reads nor writes the cache (controls).

    resumed: output that another replica generated before; this one goes on after it, and counts
    it in `output_tokens` and against `max_tokens`.
    """

    request_id: str
    tokens: Sequence[int]
    sampling: Sampling
    salt: bytes = b""
    use_cache: bool = True
    facts: RequestFacts = RequestFacts()
    resumed: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """A piece of a reply. The last one carries `finish_reason` and the final counts.

    `text` never ends inside a UTF-8 character, nor inside what may become a stop string.
    `cached_tokens` (of the prompt, loaded instead of computed) is set from the first delta on.
    tokens: the output since the last delta; some of their text may still be held back.
    """

    text: str
    output_tokens: int
    cached_tokens: int
    finish_reason: FinishReason | None = None
    tokens: tuple[int, ...] = ()


class ModelCore(Protocol):
    """A model with `slots` independent KV streams; a slot holds one sequence, positions from 0.

    Exactness: `prefill` runs one decode call for one slot and nothing else, so that a block's
    bytes depend on identity and tokens only. `decode` batches one token of several slots.
    """

    @property
    def identity(self) -> Identity: ...
    @property
    def model_id(self) -> str:
        """The name under /v1/models."""
        ...

    @property
    def engine_name(self) -> str:
        """Either "embedded" or "timed"; shown wherever the engine is."""
        ...

    @property
    def slots(self) -> int: ...
    @property
    def context_tokens(self) -> int:
        """Prompt plus output, at most, of one sequence."""
        ...

    @property
    def block_tokens(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text`. `special` lets control tokens in the text count as such. Thread-safe."""
        ...

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """The model's chat template applied, with the assistant's opening. Thread-safe.

        For hashing and showing only: tokenised with `special`, a content could forge turns.
        """
        ...

    def tokenize_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt of a chat: the template's control tokens count, a content's do not.

        Raises InvalidRequest when the model has no chat template. Thread-safe.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token (may be part of a UTF-8 character); b"" for control tokens.

        Raises IndexError or OverflowError for an id that is no token. Thread-safe.
        """
        ...

    def is_end(self, token: int) -> bool:
        """Whether the token ends generation."""
        ...

    def clear(self, slot: int) -> None:
        """Empty the slot."""
        ...

    def prefill(self, slot: int, tokens: Sequence[int], position: int) -> None:
        """Compute [position, position + len(tokens)) in one call. Last token's logits are kept."""
        ...

    def import_blocks(self, slot: int, blocks: Sequence[Buffer], tokens: Sequence[int]) -> None:
        """Make the slot hold [0, len(blocks) * block_tokens); `tokens` are those positions' ids."""
        ...

    def export_blocks(self, slot: int, first: int, last: int) -> Sequence[Buffer]:
        """Payloads of blocks [first, last) of the slot, each a read-only buffer of its own.

        Raises BlockCorrupted when they cannot be told apart safely; the request goes on.
        """
        ...

    def start_sampling(self, slot: int, sampling: Sampling, drawn: int = 0) -> None:
        """Set up the slot's sampler (its own random state), `drawn` tokens of the reply having
        been drawn before, perhaps elsewhere: with a seed, the rest is the same as if here.
        """
        ...

    def sample(self, slot: int) -> int:
        """The next token of the slot from the logits of its last computed token.

        Only for slots of the last `prefill` or `decode` call, and before the next one: logits
        live until then.
        """
        ...

    def decode(self, steps: Sequence[tuple[int, int, int]]) -> None:
        """One call for several slots: (slot, token, position) each; then `sample` each."""
        ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunnerLoad:
    """A snapshot for signals, health and the router. Rates are measured, 0.0 while unknown."""

    running: int
    waiting: int
    slots: int
    loop_age_s: float
    """Seconds since the loop last made progress; /health is this, bounded."""
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    queue_delay_s: float
    """How long the oldest waiting request has waited."""


class Runner(Protocol):
    """Continuous batching behind an async face. The event loop never blocks on it."""

    @property
    def core(self) -> ModelCore: ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Stream one reply. Closing the generator cancels the request and frees its slot.

        Its first step raises InvalidRequest (prompt beyond the context), Overloaded (queue
        full), EngineClosed; any step may raise Overloaded (deadline), EngineFailed.
        """
        ...

    def load(self) -> RunnerLoad:
        """Does not block; any thread."""
        ...

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, let running ones finish for `drain_s` seconds, then stop."""
        ...
