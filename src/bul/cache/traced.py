"""What the cache did for one request, told as spans: its match, and each load from a slower tier.

Refuses to run under the engine's lock: what is to be told is noted there, and told by who calls
what is due afterwards. Blocks are counted, never named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bul.blocks.prefix import RequestFacts
from bul.cache.flights import Flight
from bul.tracing import Span

__all__ = ["LoadFacts", "load_told", "match_told", "skip_told", "under_match"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoadFacts:
    """One load that has ended. outcome: hit, miss, refused (computing is faster), unavailable,
    timed_out or closed; blocks came in order before that.
    """

    tier: str
    started_s: float
    ended_s: float
    asked_blocks: int
    blocks: int
    size_bytes: int
    outcome: str


def under_match(facts: RequestFacts, asked_tokens: int) -> RequestFacts:
    """The same, with a span of its own for the match that begins now. `facts.span` is not None."""
    assert facts.span is not None
    span = facts.span.child("bul.cache.match", {"bul.asked_tokens": asked_tokens})
    return dataclasses.replace(facts, span=span)


def match_told(flight: Flight, block_tokens: int) -> Callable[[], None]:
    """Ends the match's span; for when `flight` is settled."""
    span = flight.facts.span
    assert span is not None

    def told() -> None:
        span.set(
            {
                "bul.cached_tokens": len(flight.entries) * block_tokens,
                "bul.ram_tokens": flight.ram_blocks * block_tokens,
                "bul.waited_for_another_request": flight.waited,
            }
        )
        span.end()

    return told


def load_told(span: Span, facts: LoadFacts) -> Callable[[], None]:
    """Tells one load; a span of the match it was for."""

    def told() -> None:
        span.add(
            "bul.cache.load",
            facts.started_s,
            facts.ended_s,
            {
                "bul.tier": facts.tier,
                "bul.asked_blocks": facts.asked_blocks,
                "bul.blocks": facts.blocks,
                "bul.bytes": facts.size_bytes,
                "bul.outcome": facts.outcome,
            },
            error=facts.outcome if facts.outcome in ("unavailable", "timed_out") else "",
        )

    return told


def skip_told(span: Span, tier: str) -> Callable[[], None]:
    """Tells that a tier was not asked: its breaker is open, or it is overdue."""
    return lambda: span.event("tier_skipped", {"bul.tier": tier})
