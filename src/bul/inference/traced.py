"""What the engine did for one request, told as spans when it has ended.

Refuses to work while the request does: times are noted on the way, and the spans are made from
them at the end. The match, its loads and the stores are told by who does them.
"""

from __future__ import annotations

from bul.inference.active import ActiveRequest

__all__ = ["tell"]


def tell(active: ActiveRequest, now_s: float) -> None:
    """`active` ends now, however far it came. Does not modify it.

    arrival --queue--> admitted --import--> imported --prefill--> first token --decode--> now
    """
    span = active.request.facts.span
    if span is None:
        return
    cached, prompt = active.cached_tokens, active.prompt_tokens
    computed = max(0, min(active.position, prompt) - cached)
    steps = (
        ("bul.engine.queue", active.admitted_s, {"bul.waited_for_match_s": _waited_s(active)}),
        ("bul.engine.import", active.imported_s, {"bul.cached_tokens": cached}),
        (
            "bul.engine.prefill",
            active.first_token_s,
            {"bul.computed_tokens": computed, "bul.compute_s": round(active.prefill_s, 6)},
        ),
        ("bul.engine.decode", now_s, {"bul.output_tokens": active.output_tokens}),
    )
    started_s = active.arrival_s
    for name, ended_s, attributes in steps:
        span.add(name, started_s, ended_s or now_s, attributes, error="" if ended_s else "given up")
        if not ended_s:
            return
        started_s = ended_s


def _waited_s(active: ActiveRequest) -> float:
    """From its arrival until the cache was asked."""
    return round(max(0.0, active.matched_s - active.arrival_s), 6) if active.matched_s else 0.0
