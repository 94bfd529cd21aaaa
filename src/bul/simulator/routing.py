"""The production router's judgement over simulated replicas: `route.py`, residency and rates.

Like the real one it believes what a replica tells of its cache, or (without `block_events`) that
it holds what was sent to it, and learns from first tokens what a token and a request ahead cost.
Refuses what needs sockets: retries, hedging, the limit on requests under way; and events come at
once here.

Text has no part in a trace, so one hint stands for one block, where the real router hashes chunks
of text; like there, a prompt is told apart by its first 256 KiB.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from bul.cache.eviction.contract import EvictionPolicy
from bul.errors import ConfigError
from bul.router.homes import FITS_MIN, Homes
from bul.router.prompt import BYTES_PER_TOKEN, TEXT_BYTES_MAX
from bul.router.rates import Rates
from bul.router.residency import Residency
from bul.router.route import POLICIES, choose, choose_prefix
from bul.simulator.job import Job

__all__ = ["ROUTES", "Router", "Routing"]

PREFIX = "prefix"
ROUTES = (*POLICIES, PREFIX)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """How requests find a replica, and what a replica keeps. Raises ConfigError.

    policy: of ROUTES. eviction: a policy of the cache. capacity_blocks: of one replica, 0 for no
    cache. residency_tokens: how much KV the router believes a replica to keep if it tells nothing.
    """

    policy: str = "least_conn"
    eviction: str = "lru"
    capacity_blocks: int = 0
    block_tokens: int = 512
    residency_tokens: int = 262_144
    block_events: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in ROUTES:
            raise ConfigError(f"unknown route: {self.policy}", hint=f"known: {', '.join(ROUTES)}")
        if self.capacity_blocks < 0 or self.block_tokens < 1 or self.residency_tokens < 0:
            raise ConfigError("capacity_blocks, block_tokens and residency_tokens: 0 or more")


class Router:
    """Picks among the ready replicas; mutable: it learns from what it sent and what came back."""

    def __init__(self, routing: Routing) -> None:
        self._policy = routing.policy
        self._learns = routing.policy == PREFIX
        self._block_tokens = routing.block_tokens
        self._block_events = routing.block_events
        self._hints_max = routing.residency_tokens // routing.block_tokens
        self._told_apart = TEXT_BYTES_MAX // BYTES_PER_TOKEN // routing.block_tokens
        self._turn = itertools.count()
        self._homes: Homes[Residency] = Homes()
        self.rates = Rates()

    def residency(self, cache: EvictionPolicy | None = None) -> Residency:
        """What a replica that has just started, with this cache, is believed to hold."""
        residency = Residency(self._hints_max)
        if self._block_events:
            residency.told = cache
        return residency

    def pick(self, residencies: Sequence[Residency], in_flight: Sequence[int], job: Job) -> int:
        """The index of the replica that takes `job`; notes the dispatch in job and residency."""
        turn = next(self._turn)
        if not self._learns:
            return choose(self._policy, in_flight, turn)
        hints, now_s = job.path[: self._told_apart], job.arrived_s
        matched = [held.matched(hints, now_s) for held in residencies]
        tokens = [float(job.prompt_tokens - blocks * self._block_tokens) for blocks in matched]
        chosen = choose_prefix(
            tokens,
            in_flight,
            turn,
            per_token_ms=self.rates.per_token_ms,
            per_request_ms=self.rates.per_request_ms,
            left=self._left_tokens(residencies, hints, matched),
        )
        job.believed_tokens, job.ahead = tokens[chosen], in_flight[chosen]
        residencies[chosen].add(hints, now_s)
        self._homes.add(hints, residencies[chosen])
        return chosen

    def _left_tokens(
        self, residencies: Sequence[Residency], hints: Sequence[int], matched: Sequence[int]
    ) -> list[float]:
        """As the real router's judge does."""
        found = self._homes.find(hints, max(matched))
        if found is None:
            return []
        home, blocks = found
        if home not in residencies or home.hints_max < FITS_MIN * len(hints):
            return []
        had = [0.0] * len(residencies)
        index = residencies.index(home)
        had[index] = float((blocks - matched[index]) * self._block_tokens)
        return had

    def first_token(self, job: Job) -> None:
        """A first token came out: what that says about the rates."""
        if self._learns and job.path:
            ms = (job.first_token_s - job.arrived_s) * 1000.0
            self.rates.observe(job.believed_tokens, job.ahead, ms)
