"""Does the time of an answer tell one tenant what another one asked? The audit, in made time.

After "Auditing Prompt Caching in Language Model APIs" (Gu et al., ICML 2025): one tenant asks
prompts, the other times these and as many fresh ones, in random order; the two samples of times
are compared by Kolmogorov and Smirnov. Time is the engine's own made clock, which moves by what is
computed: whatever would be cached shows at once, and a busy machine does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import httpx
import pytest

from bul.accounts.keys import hash_key
from bul.config import ServeConfig, TimedConfig
from bul.inference.timed import TimedCore
from bul.testing.clock import ManualClock
from bul.testing.replica import running_replica

pytestmark = [pytest.mark.security, pytest.mark.steady]

KEYS = {"alice": "sk-alice", "bob": "sk-bob"}
PROMPTS = 250
CRITICAL = 1.95 * (2 / PROMPTS) ** 0.5
"""Of the distance of two samples of one distribution, one in a thousand is greater: 0.174."""


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Kolmogorov and Smirnov's: the greatest gap between the two shares of times up to t."""
    ordered = sorted(first), sorted(second)
    return max(
        abs(
            sum(a <= t for a in ordered[0]) / len(first)
            - sum(b <= t for b in ordered[1]) / len(second)
        )
        for t in {*first, *second}
    )


class Audit:
    """Asks as a tenant, one request after another, and times each by the engine's made clock."""

    def __init__(self, client: httpx.AsyncClient, clock: ManualClock, seed: int) -> None:
        self._client = client
        self._clock = clock
        self._dice = random.Random(seed)
        self.cached_tokens = 0

    def prompt(self) -> str:
        """About 150 to 450 tokens that nobody has asked before."""
        words = [f"{self._dice.getrandbits(12):03x}" for _ in range(self._dice.randint(150, 450))]
        return " ".join(words)

    async def ask(self, tenant: str, prompt: str) -> float:
        """Seconds of made time until the first token."""
        started_s = self._clock.now_s()
        answer = await self._client.post(
            "/v1/completions",
            json={"model": "bul-timed", "prompt": prompt, "max_tokens": 1},
            headers={"Authorization": f"Bearer {KEYS[tenant]}"},
        )
        assert answer.status_code == 200, answer.text
        self.cached_tokens += answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return self._clock.now_s() - started_s

    async def compare(self, spy: str) -> float:
        """The distance of the spy's times: prompts that alice asked before, and fresh ones."""
        asked = [self.prompt() for _ in range(PROMPTS)]
        for prompt in asked:
            await self.ask("alice", prompt)
        probes = [(prompt, True) for prompt in asked]
        probes += [(self.prompt(), False) for _ in range(PROMPTS)]
        self._dice.shuffle(probes)
        self.cached_tokens = 0
        times: dict[bool, list[float]] = {True: [], False: []}
        for prompt, was_asked in probes:
            times[was_asked].append(await self.ask(spy, prompt))
        return distance(times[True], times[False])


async def audit(spy: str, *, rounds: int = 1, share: bool = False) -> tuple[float, int]:
    """The greatest distance of all rounds, and how many tokens the spy was told were cached."""
    clock = ManualClock()
    serve = ServeConfig(port=0, share_between_tenants=share)
    core = TimedCore(serve, TimedConfig(block_bytes=256), clock=clock, sleep=clock.advance)
    hashes = {name: hash_key(key) for name, key in KEYS.items()}
    async with (
        running_replica(serve, keys=hashes, core=core) as replica,
        httpx.AsyncClient(base_url=replica.url, timeout=30) as client,
    ):
        audits = [Audit(client, clock, seed) for seed in range(rounds)]
        distances = [await each.compare(spy) for each in audits]
    return max(distances), sum(each.cached_tokens for each in audits)


@pytest.mark.slow
async def test_times_tell_a_tenant_nothing_of_what_another_asked() -> None:
    found, cached_tokens = await audit("bob")
    assert found < CRITICAL
    assert cached_tokens == 0


@pytest.mark.slow
async def test_within_one_tenant_and_where_tenants_share_the_same_audit_sees_everything() -> None:
    """The controls: were there a signal, it would be found."""
    for spy, share in (("alice", False), ("bob", True)):
        found, cached_tokens = await audit(spy, share=share)
        assert found > 0.9
        assert cached_tokens > PROMPTS * 128


@pytest.mark.nightly
async def test_twenty_rounds_tell_nothing() -> None:
    found, cached_tokens = await audit("bob", rounds=20)
    assert found < CRITICAL + 0.03  # the greatest of twenty
    assert cached_tokens == 0


def test_the_distance_is_that_of_the_two_distributions() -> None:
    assert distance([1, 2, 3], [1, 2, 3]) == 0
    assert distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert distance([1, 2], [3, 4]) == 1
