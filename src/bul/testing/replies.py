"""Whole replies from a `Runner`, for tests that do not look at single deltas."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from bul.blocks.prefix import RequestFacts
from bul.inference.contract import Delta, FinishReason, GenerateRequest, Runner, Sampling

__all__ = ["Reply", "reply"]

_NUMBERS = itertools.count(1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """All deltas of one request, and what they come to."""

    deltas: tuple[Delta, ...]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def output_tokens(self) -> int:
        return self.deltas[-1].output_tokens

    @property
    def cached_tokens(self) -> int:
        return self.deltas[-1].cached_tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.deltas[-1].finish_reason


async def reply(
    runner: Runner,
    tokens: Sequence[int],
    sampling: Sampling = Sampling(max_tokens=8),
    *,
    use_cache: bool = True,
    salt: bytes = b"",
    priority: str = "interactive",
) -> Reply:
    """Generate to the end. Raises what `generate` raises."""
    request = GenerateRequest(
        request_id=f"test-{next(_NUMBERS)}",
        tokens=tokens,
        sampling=sampling,
        salt=salt,
        use_cache=use_cache,
        facts=RequestFacts(prompt_tokens=len(tokens), priority=priority),
    )
    return Reply(deltas=tuple([delta async for delta in runner.generate(request)]))
