"""Which replica takes a request: filter -> score in [0, 1] -> pick.

Refuses to know sockets, clocks or randomness: loads come in as numbers, and a tie goes round by
a counter that the caller passes in. Load is counted at dispatch, by the caller: replicas that
report their own load are late, and the herd then meets at the one that looked idle.

`prefix` weighs two costs in one unit, milliseconds: the tokens that a replica would still have to
compute, and the requests that it has ahead. A prefix that everybody asks for must not drown the
replica that holds it, so a filter comes first: nobody may have more than 1.25 times the mean
under way (bounded loads, Mirrokni et al., arXiv:1608.01350), beyond the few that any batch takes.
Beside three replicas with 8 under way, the holder of a hot prefix takes a 12th request; the 13th
makes a second home for it. A token computed away from home costs more than its own time.
Who comes back after its blocks have left goes where they were, unless somebody else has clearly
less to do: the policy there learns from it (`homes.py`).

A herd is the exception: while a prefix that nobody holds is being computed for somebody, whoever
comes with the same one goes there too and waits for its blocks, instead of computing them again
on each of the idle ones. It ends with the first answer: then the prefix is warm, and load counts.

`session` keeps a client's requests together by rendezvous hashing (Thaler and Ravishankar, 1998):
the highest hash of (session, replica) wins, so that a replica that goes takes only its own
sessions with it, and gets them back when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import xxhash

__all__ = [
    "POLICIES",
    "choose",
    "choose_prefix",
    "herd_homes",
    "load_limit",
    "pick",
    "score_least_conn",
    "score_prefix",
    "score_round_robin",
    "score_session",
]

Scorer = Callable[[Sequence[int]], list[float]]

LOAD_SHARE_MAX = 1.25
"""Times the mean of requests under way that one replica may have."""
LOAD_SLACK = 6
"""Below this many under way there is no crowd, whatever the mean: a batch takes them."""
STORED_TWICE = 4.0
"""What a token costs that is computed away from home: it is stored a second time there, and pushes
something out that somebody will have to compute again. Found on moon_conv (`make bench-routing`):
with 1, four replicas keep 0.95 of what one cache of their sum would save, with 4 0.99; TTFT too."""
HOME_AHEAD = 2.0
"""So many requests more may the replica have that had the prompt before."""
HERD_SHARE = 0.5
"""Of what a prompt would cost elsewhere, at least so much must be under way for others."""


def score_round_robin(in_flight: Sequence[int]) -> list[float]:
    """Everybody is as good as the next one; `pick`'s tie rule makes the round."""
    return [1.0] * len(in_flight)


def score_least_conn(in_flight: Sequence[int]) -> list[float]:
    """Fewer requests under way score higher: 1 for none, 1/2 for one, 1/3 for two."""
    return [1.0 / (1 + load) for load in in_flight]


def score_prefix(
    tokens: Sequence[float],
    in_flight: Sequence[int],
    *,
    per_token_ms: float,
    per_request_ms: float,
    herd: Sequence[float] = (),
    left: Sequence[float] = (),
) -> list[float]:
    """Less waiting scores higher: 1 for none, 1/2 for a millisecond; 0 for the overloaded, of
    whom there is always somebody who is not, and for those beside the home of a herd.

    tokens: what each candidate would still have to compute of this prompt. herd: what it already
    computes of it for others, not counted in `tokens`; empty if nobody does. left: what it had of
    it before, and nobody has now, counted in `tokens`; empty if nobody had.
    """
    per_token_ms *= STORED_TWICE
    homes = herd_homes(tokens, herd) if any(herd) else ()
    if homes:
        return [
            1.0 / (1.0 + per_token_ms * compute + per_request_ms * load) if index in homes else 0.0
            for index, (compute, load) in enumerate(zip(tokens, in_flight, strict=True))
        ]
    limit = load_limit(in_flight)
    waits_ms = [
        per_token_ms * compute + per_request_ms * load
        for compute, load in zip(tokens, in_flight, strict=True)
    ]
    for index, had in enumerate(left):
        waits_ms[index] -= min(per_token_ms * had, HOME_AHEAD * per_request_ms)
    return [
        1.0 / (1.0 + wait_ms) if load < limit else 0.0
        for wait_ms, load in zip(waits_ms, in_flight, strict=True)
    ]


def score_session(session: bytes, names: Sequence[bytes]) -> list[float]:
    """A hash of session and name, as evenly spread as chance; the rest has no say."""
    seed = xxhash.xxh3_64_intdigest(session)
    return [xxhash.xxh3_64_intdigest(name, seed) / (1 << 64) for name in names]


POLICIES: dict[str, Scorer] = {
    "round_robin": score_round_robin,
    "least_conn": score_least_conn,
}
"""The policies that look at nothing but the load."""


def herd_homes(tokens: Sequence[float], herd: Sequence[float]) -> frozenset[int]:
    """Who computes most of what would have to be computed at the best of the others anyway."""
    alone = min(compute + shared for compute, shared in zip(tokens, herd, strict=True))
    return frozenset(
        index
        for index, shared in enumerate(herd)
        if shared > 0 and alone - tokens[index] >= HERD_SHARE * alone > 0
    )


def load_limit(in_flight: Sequence[int]) -> float:
    """Who has this many or more under way may not take one more; always above the smallest load."""
    mean = (sum(in_flight) + 1) / len(in_flight)
    return max(LOAD_SLACK, LOAD_SHARE_MAX * mean)


def pick(scores: Sequence[float], turn: int) -> int:
    """The index of the highest score; among equals, the `turn`-th one, going round."""
    best = max(scores)
    if scores.count(best) == 1:
        return scores.index(best)
    ties = [index for index, score in enumerate(scores) if score == best]
    return ties[turn % len(ties)]


def choose(policy: str, in_flight: Sequence[int], turn: int) -> int:
    """The index of the candidate that takes the next request.

    in_flight: requests under way at each candidate, which the filter has left; not empty.
    """
    return pick(POLICIES[policy](in_flight), turn)


def choose_prefix(
    tokens: Sequence[float],
    in_flight: Sequence[int],
    turn: int,
    *,
    per_token_ms: float,
    per_request_ms: float,
    herd: Sequence[float] = (),
    left: Sequence[float] = (),
) -> int:
    """As `choose`, for a prompt of which candidate i would have to compute `tokens[i]`."""
    scores = score_prefix(
        tokens,
        in_flight,
        per_token_ms=per_token_ms,
        per_request_ms=per_request_ms,
        herd=herd,
        left=left,
    )
    return pick(scores, turn)
