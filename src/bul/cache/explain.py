"""Why a prompt was a hit or not: which block broke the chain, or which field of the identity.

It refuses to look anything up: presence and identities are handed in, sentences come out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

__all__ = ["Explanation", "OtherIdentity", "difference", "explain"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OtherIdentity:
    """Blocks of the same prompt under an identity that is not ours.

    fields: as stored; `None` values are unknown. blocks: leading blocks of this prompt there, 0 if
    that was not looked up.
    """

    fields: Mapping[str, object]
    blocks: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """cached: blocks [0, cached) can be loaded. broken_at: the first that is nowhere, or `None`.

    tiers: leading blocks in each tier. reasons: sentences, the main one first.
    """

    blocks: int
    cached: int
    broken_at: int | None
    tiers: Mapping[str, int]
    reasons: tuple[str, ...]


def difference(
    ours: Mapping[str, object], theirs: Mapping[str, object]
) -> tuple[tuple[str, object, object], ...]:
    """(field, ours, theirs) of every field that both have and that differs, by name."""
    shared = sorted(set(ours) & set(theirs) - {"digest"})
    return tuple((name, ours[name], theirs[name]) for name in shared if ours[name] != theirs[name])


def explain(
    presence: Mapping[str, Sequence[bool]],
    *,
    tokens: int,
    block_tokens: int,
    identity: Mapping[str, object] | None = None,
    others: Sequence[OtherIdentity] = (),
) -> Explanation:
    """`presence`: for each tier, fastest first, whether it has block i of the prompt."""
    blocks = tokens // block_tokens
    assert all(len(here) == blocks for here in presence.values()), "one flag a block"
    anywhere = [any(here[i] for here in presence.values()) for i in range(blocks)]
    cached = _leading(anywhere)
    broken_at = cached if cached < blocks else None
    reasons = [_main_reason(blocks, cached, tokens, block_tokens)]
    if broken_at is not None:
        later = sum(anywhere[broken_at:])
        if later:
            reasons.append(
                f"{later} later blocks are still there, but useless without block {broken_at}"
            )
        reasons += _other_reasons(identity or {}, others)
    return Explanation(
        blocks=blocks,
        cached=cached,
        broken_at=broken_at,
        tiers={name: _leading(here) for name, here in presence.items()},
        reasons=tuple(reasons),
    )


def _leading(here: Sequence[bool]) -> int:
    return next((i for i, there in enumerate(here) if not there), len(here))


def _main_reason(blocks: int, cached: int, tokens: int, block_tokens: int) -> str:
    if not blocks:
        return f"{tokens} tokens are less than one block of {block_tokens}: nothing to look up"
    if cached == blocks:
        rest = tokens - blocks * block_tokens
        return f"all {blocks} full blocks are cached; {rest} tokens behind them are computed anyway"
    first, last = cached * block_tokens, (cached + 1) * block_tokens
    return f"block {cached} of {blocks}, tokens [{first}, {last}), is in no tier: " + (
        "this beginning was never stored, or evicted" if not cached else "the chain ends there"
    )


def _other_reasons(identity: Mapping[str, object], others: Sequence[OtherIdentity]) -> list[str]:
    reasons = []
    for other in others:
        fields = difference(identity, other.fields)
        if not fields:
            continue
        what = "; ".join(f"{name} is {ours!r}, there {theirs!r}" for name, ours, theirs in fields)
        found = f"{other.blocks} blocks of this prompt are" if other.blocks else "blocks are"
        reasons.append(f"{found} stored under another identity: {what}")
    return reasons
