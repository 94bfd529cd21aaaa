"""From the ready replicas and a prompt to the one that takes it: gathers facts for `route.py`.

Refuses to score: that is pure and lives in `route.py`. With `explain` set, every decision is told
with the scores of all candidates and why the others were none; no text of a prompt is.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from bul.config import RouteConfig
from bul.router.homes import FITS_MIN, Homes
from bul.router.prompt import HINTED_TOKENS, Prompt
from bul.router.rates import Rates
from bul.router.replica import Replica
from bul.router.route import (
    POLICIES,
    herd_homes,
    pick,
    score_least_conn,
    score_prefix,
    score_session,
)

__all__ = ["Judge"]

Asker = Callable[[Mapping[str, object]], Mapping[str, object]]


class Judge:
    """Keeps the turn, by which ties go round, its last answer's cost, and where prompts were."""

    def __init__(self, config: RouteConfig, rates: Rates) -> None:
        self._policy = config.policy
        self._rates = rates
        self._score_load = POLICIES.get(config.policy, score_least_conn)
        self._turn = itertools.count()
        self._homes: Homes[Replica] = Homes()
        self.to_compute = 0.0
        """Tokens of the prompt that was last picked for, left to compute for who was chosen."""
        self.explain: Callable[[Mapping[str, object]], None] | None = None
        self._asker: Asker | None = None

    @contextlib.contextmanager
    def asked_by(self, asker: Asker) -> Iterator[None]:
        """Within, decisions are told to `asker` first, and what it returns is shown beside them."""
        before, self._asker = self._asker, asker
        try:
            yield
        finally:
            self._asker = before

    def pick(
        self, ready: Sequence[Replica], prompt: Prompt, tried: Sequence[Replica], now_s: float
    ) -> Replica | None:
        """None if none but those in `tried` is ready and has room. Changes no replica."""
        candidates = [
            replica
            for replica in ready
            if replica.in_flight < replica.limit.now and replica not in tried
        ]
        if prompt.hints and len(candidates) < len(ready):
            candidates = self._herd_homes(ready, prompt, tried, now_s) or candidates
        scores: list[float] = []
        tokens: list[float] = []
        herd: list[float] = []
        left: list[float] = []
        turn, chosen = 0, None
        if candidates:
            turn = next(self._turn)
            in_flight = [replica.in_flight for replica in candidates]
            if self._policy == "prefix":
                hints = prompt.hints
                matched = [replica.residency.matched(hints, now_s) for replica in candidates]
                tokens, herd = _work(candidates, prompt, matched, now_s)
                left = self._left_tokens(candidates, prompt, matched)
                scores = score_prefix(
                    tokens,
                    in_flight,
                    per_token_ms=self._rates.per_token_ms,
                    per_request_ms=self._rates.per_request_ms,
                    herd=herd,
                    left=left,
                )
            elif self._policy == "session" and prompt.session:
                names = [replica.authority for replica in candidates]
                scores = score_session(prompt.session, names)
            else:
                scores = self._score_load(in_flight)
            index = pick(scores, turn)
            chosen = candidates[index]
            self.to_compute = tokens[index] if tokens else prompt.tokens
        if self.explain is not None or self._asker is not None:
            facts = {"to_compute_tokens": tokens, "computing_tokens": herd, "left_tokens": left}
            document: dict[str, object] = self._explained(candidates, scores, facts) | {
                "tokens": prompt.tokens,
                "turn": turn,
                "chosen": chosen and chosen.url,
                "left_out": _left_out(ready, candidates, tried),
            }
            if self._asker is not None:
                document |= self._asker(document)
            if self.explain is not None:
                self.explain(document)
        return chosen

    def sent(self, prompt: Prompt, replica: Replica, now_s: float) -> None:
        """`replica` gets `prompt`, which has hints."""
        replica.residency.add(prompt.hints, now_s)
        self._homes.add(prompt.hints, replica)

    def _herd_homes(
        self, ready: Sequence[Replica], prompt: Prompt, tried: Sequence[Replica], now_s: float
    ) -> list[Replica]:
        """Who is full, and yet the one to wait at: what waits there for blocks of somebody else
        takes no place in a batch. Up to the configured most.
        """
        hints = prompt.hints
        found = [
            replica
            for replica in ready
            if replica.in_flight < replica.limit.most and replica not in tried
        ]
        matched = [replica.residency.matched(hints, now_s) for replica in found]
        if not any(matched):
            return []
        herd = _computing_tokens(found, prompt, matched, now_s)
        homes = herd_homes([prompt.tokens_after(count) for count in matched], herd)
        return [found[index] for index in sorted(homes)]

    def _left_tokens(
        self, candidates: Sequence[Replica], prompt: Prompt, matched: Sequence[int]
    ) -> list[float]:
        """What its last home had of the prompt, beyond what anybody has; empty if nobody had."""
        hints, best = prompt.hints, max(matched)
        found = self._homes.find(hints, best) if best < len(hints) else None
        if found is None:
            return []
        home, count = found
        if home not in candidates or home.residency.hints_max < FITS_MIN * len(hints):
            return []
        had = [0.0] * len(candidates)
        index = candidates.index(home)
        had[index] = HINTED_TOKENS[count] - HINTED_TOKENS[matched[index]]
        return had

    def _explained(
        self,
        candidates: Sequence[Replica],
        scores: Sequence[float],
        facts: Mapping[str, Sequence[float]],
    ) -> dict[str, object]:
        rows = []
        for index, replica in enumerate(candidates):
            row = {"url": replica.url, "score": scores[index], "in_flight": replica.in_flight}
            rows.append(row | {name: given[index] for name, given in facts.items() if given})
        return {
            "event": "routed",
            "policy": self._policy,
            "per_token_ms": self._rates.per_token_ms,
            "per_request_ms": self._rates.per_request_ms,
            "candidates": rows,
        }


def _work(
    candidates: Sequence[Replica], prompt: Prompt, matched: Sequence[int], now_s: float
) -> tuple[list[float], list[float]]:
    """The tokens of the prompt that each would have to compute; and, if anybody is at it, those
    that each computes for others.
    """
    whole = prompt.tokens
    tokens = [whole - HINTED_TOKENS[count] for count in matched]
    if any(matched):
        for replica in candidates:
            if replica.residency.computing:
                return tokens, _computing_tokens(candidates, prompt, matched, now_s)
    return tokens, []


def _computing_tokens(
    replicas: Sequence[Replica], prompt: Prompt, matched: Sequence[int], now_s: float
) -> list[float]:
    """What each of them computes of the prompt for somebody else right now."""
    return [
        HINTED_TOKENS[count] - HINTED_TOKENS[replica.residency.warm(prompt.hints, now_s, count)]
        if count
        else 0.0
        for count, replica in zip(matched, replicas, strict=True)
    ]


def _left_out(
    ready: Sequence[Replica], candidates: Sequence[Replica], tried: Sequence[Replica]
) -> list[dict[str, str]]:
    return [
        {"url": replica.url, "why": "tried" if replica in tried else "full"}
        for replica in ready
        if replica not in candidates
    ]
