"""Plays a trace through an eviction policy and counts what a cache of that size would have saved.

It refuses to time itself or to read files: `replay_trace.py` reads, the caller holds the watch.

The reference rules: only full blocks count; a request's hit tokens are those of its longest
resident prefix; then all its blocks are offered to the policy; capacity counts blocks; token hit
ratio = hit tokens / tokens in, requests shorter than a block included.

The policy learns a request's output tokens when the request would have ended, not before: after
its prefill and DECODE_S_PER_TOKEN for each. Prefill cost grows with depth, because attention reads
all tokens before: the token at depth d costs (1 + d / DEPTH_DOUBLING_TOKENS) /
PREFILL_TOKENS_PER_S, so the first n tokens cost n (1 + n / (2 x DEPTH_DOUBLING_TOKENS)) /
PREFILL_TOKENS_PER_S. The figures are those of an 8B dense model (32 layers of 4,096: 16 GFLOP a
token, and as much again in attention at depth 30,500) at an effective 160 TFLOP/s.
Worked number: 12,000 cached tokens save 1.44 s, the same tokens in 12 requests of 1,000 1.22 s.
"""

from __future__ import annotations

import dataclasses
import difflib
import fractions
import heapq
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from bul.cache.eviction.contract import Access
from bul.cache.eviction.make import POLICY_NAMES, make_policy
from bul.cache.replay_ceilings import Belady, Infinite
from bul.cache.replay_trace import Trace
from bul.errors import ConfigError

__all__ = [
    "COST_MODEL",
    "REPLAY_NAMES",
    "ReplayResult",
    "Replayed",
    "capacity_blocks",
    "check_name",
    "make_replayed",
    "prefill_s",
    "replay",
]

PREFILL_TOKENS_PER_S = 10_000.0
DEPTH_DOUBLING_TOKENS = 30_500.0
DECODE_S_PER_TOKEN = 0.03
PROGRESS_REQUESTS = 256

COST_MODEL = (
    f"prefill of the first n tokens = n (1 + n / {2 * DEPTH_DOUBLING_TOKENS:.0f})"
    f" / {PREFILL_TOKENS_PER_S:.0f} s"
)
REPLAY_NAMES: tuple[str, ...] = (*POLICY_NAMES, "belady", "infinite")


class Replayed(Protocol):
    """What a replay needs: the eviction contract without holds, removal and resizing."""

    def match(self, path: Sequence[Hashable]) -> int: ...

    def access(self, access: Access) -> list[Hashable]: ...

    def finish(self, path: Sequence[Hashable], output_tokens: int) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplayResult:
    """Sums over one replay. `prefill_s` is what no cache would have paid."""

    requests: int
    input_tokens: int
    hit_tokens: int
    prefill_s: float
    saved_prefill_s: float

    @property
    def token_hit_ratio(self) -> float:
        """Hit tokens / tokens in, 0.0 for a trace without tokens."""
        return self.hit_tokens / self.input_tokens if self.input_tokens else 0.0


def prefill_s(tokens: int) -> float:
    """Modelled seconds to prefill the first `tokens` tokens of a sequence."""
    return tokens * (1.0 + tokens / (2.0 * DEPTH_DOUBLING_TOKENS)) / PREFILL_TOKENS_PER_S


def capacity_blocks(capacity: str, unique_blocks: int) -> int:
    """Blocks meant by `capacity`: a share of `unique_blocks` if it has a dot, else a count.

    Raises ConfigError for anything that is not a positive number.
    """
    try:
        # A Fraction, because 0.29 of 100 blocks is 29 and in binary floats it is 28.
        wanted = fractions.Fraction(capacity) * (unique_blocks if "." in capacity else 1)
        blocks = max(math.floor(wanted), 1) if wanted > 0 else 0
    except (ValueError, ZeroDivisionError):
        blocks = 0
    if blocks < 1:
        raise ConfigError(
            f"capacity must be a number of blocks or a share with a dot, was {capacity!r}",
            hint="--capacity 0.05 or --capacity 4096",
        )
    return blocks


def check_name(name: str) -> None:
    """Raises ConfigError if `name` is neither a policy nor a ceiling."""
    if name not in REPLAY_NAMES:
        near = difflib.get_close_matches(name, REPLAY_NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else ""
        known = ", ".join(REPLAY_NAMES)
        raise ConfigError(f"policy must be one of {known}, was {name!r}", hint=hint)


def make_replayed(name: str, capacity: int, trace: Trace, seed: int = 0) -> Replayed:
    """The policy or ceiling called `name`, empty. Raises ConfigError for an unknown name."""
    if name == Belady.name:
        return Belady(capacity, trace)
    if name == Infinite.name:
        return Infinite(capacity)
    return make_policy(name, capacity, seed)


def replay(
    trace: Trace, policy: Replayed, *, progress: Callable[[int], None] | None = None
) -> ReplayResult:
    """Play every request of `trace` in order; `progress` hears of requests done now and then."""
    tokens = trace.block_tokens
    input_tokens = hit_tokens = 0
    spent_s = saved_s = 0.0
    running: list[tuple[float, int]] = []
    for position, request in enumerate(trace.requests):
        _finish_until(request.at_s, running, trace, policy)
        hit = tokens * policy.match(request.path)
        policy.access(
            Access(
                path=request.path,
                now_s=request.at_s,
                block_tokens=tokens,
                session=request.session,
            )
        )
        cost_s, hit_s = prefill_s(request.input_tokens), prefill_s(hit)
        end_s = request.at_s + cost_s - hit_s + request.output_tokens * DECODE_S_PER_TOKEN
        heapq.heappush(running, (end_s, position))
        input_tokens += request.input_tokens
        hit_tokens += hit
        spent_s += cost_s
        saved_s += hit_s
        if progress is not None and position % PROGRESS_REQUESTS == 0:
            progress(position)
    return ReplayResult(
        requests=len(trace.requests),
        input_tokens=input_tokens,
        hit_tokens=hit_tokens,
        prefill_s=spent_s,
        saved_prefill_s=saved_s,
    )


def _finish_until(
    now_s: float, running: list[tuple[float, int]], trace: Trace, policy: Replayed
) -> None:
    while running and running[0][0] <= now_s:
        _, position = heapq.heappop(running)
        request = trace.requests[position]
        policy.finish(request.path, request.output_tokens)
