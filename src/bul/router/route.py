"""Which replica takes a request: filter -> score in [0, 1] -> pick.

Refuses to know sockets, clocks or randomness: loads come in as numbers, and a tie goes round by
a counter that the caller passes in. Load is counted at dispatch, by the caller: replicas that
report their own load are late, and the herd then meets at the one that looked idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["POLICIES", "choose", "pick", "score_least_conn", "score_round_robin"]

Scorer = Callable[[Sequence[int]], list[float]]


def score_round_robin(in_flight: Sequence[int]) -> list[float]:
    """Everybody is as good as the next one; `pick`'s tie rule makes the round."""
    return [1.0] * len(in_flight)


def score_least_conn(in_flight: Sequence[int]) -> list[float]:
    """Fewer requests under way score higher: 1 for none, 1/2 for one, 1/3 for two."""
    return [1.0 / (1 + load) for load in in_flight]


POLICIES: dict[str, Scorer] = {
    "round_robin": score_round_robin,
    "least_conn": score_least_conn,
}


def pick(scores: Sequence[float], turn: int) -> int:
    """The index of the highest score; among equals, the `turn`-th one, going round."""
    best = max(scores)
    ties = [index for index, score in enumerate(scores) if score == best]
    return ties[turn % len(ties)]


def choose(policy: str, in_flight: Sequence[int], turn: int) -> int:
    """The index of the candidate that takes the next request.

    in_flight: requests under way at each candidate, which the filter has left; not empty.
    """
    return pick(POLICIES[policy](in_flight), turn)
