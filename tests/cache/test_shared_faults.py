"""A Valkey that is killed, frozen, slow or lying: no request fails, no token is wrong.

Real server, real sockets, a whole replica in front. Times are the bench's (`make bench-shared`);
here is shown that the breaker opens, and that an open breaker asks nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bul.cache.contract import Tier
from bul.cache.tiers.shared import open_shared_tier
from bul.cli.ask import Answer, ask
from bul.config import KVCacheConfig, ServeConfig, TimedConfig
from bul.inference.timed import TimedCore
from bul.testing.engines import settled
from bul.testing.replica import ReplicaUnderTest, running_replica
from bul.testing.shared_faults import FAULTS, PlainTier, SharedFaults
from bul.testing.tcp_proxy import FaultProxy, Faults
from bul.testing.valkey import running_valkey
from bul.testing.waiting import eventually

pytestmark = pytest.mark.slow

PROMPTS = [f"{topic}: " + "all of the old oak and the new elm " * 40 for topic in "abcd"]
ASKED = 12
SERVE = ServeConfig(port=0, context_tokens=2048)
TIMED = TimedConfig(prefill_tokens_per_s=20_000, decode_tokens_per_s=1000, block_bytes=65536)
ALWAYS_LOAD = KVCacheConfig(break_even=False)
"""On a busy machine the tests' engine computes faster than anything loads."""
LIES = ("damaged", "misplaced")


class Scene:
    """A replica that has stored all prompts in a Valkey, and what they are answered without it."""

    def __init__(
        self, replica: ReplicaUnderTest, faults: SharedFaults, client: httpx.AsyncClient
    ) -> None:
        self.replica, self.faults = replica, faults
        self._client = client
        self.truth: list[str] = []

    async def ask(self, number: int, *, use_cache: bool = True) -> Answer:
        """With nothing in RAM, so that the shared cache must be asked."""
        self.replica.cache.clear_ram()
        messages = [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}]
        return await ask(
            self._client,
            self.replica.url,
            messages,
            model=self.replica.core.model_id,
            max_tokens=8,
            use_cache=use_cache,
        )

    async def prepare(self) -> None:
        for number in range(len(PROMPTS)):
            self.truth.append((await self.ask(number, use_cache=False)).text)
            await self.ask(number)
        assert await asyncio.to_thread(self.replica.cache.flush)
        assert (await self.ask(0)).cached_tokens > 0

    async def ask_all(self) -> list[bool]:
        """Whether each answer was right; a failed request raises."""
        answers = [await self.ask(number) for number in range(ASKED)]
        return [a.text == self.truth[i % len(PROMPTS)] for i, a in enumerate(answers)]

    def figure(self, name: str) -> float:
        """Of the shared tier; 0 while it has not told."""
        return self.replica.cache.stats()["shared"].get(name, 0.0)

    def shut_off(self) -> bool:
        return bool(self.figure("read_breaker_open"))


@contextlib.asynccontextmanager
async def scene(
    folder: Path, *, plain: bool = False, timeout_s: float = 0.25
) -> AsyncIterator[Scene]:
    core = TimedCore(SERVE, TIMED)
    with running_valkey(folder) as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            faults = SharedFaults(server, proxy)
            config = KVCacheConfig(shared_url=faults.url, shared_timeout_s=timeout_s)
            tier: Tier = PlainTier(faults.url) if plain else open_shared_tier(config, core.identity)
            async with (
                httpx.AsyncClient(trust_env=False) as client,
                running_replica(
                    SERVE, TIMED, core=core, tiers=[tier], cache_config=ALWAYS_LOAD
                ) as replica,
            ):
                made = Scene(replica, faults, client)
                await made.prepare()
                yield made


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in LIES])
async def test_no_request_fails_and_none_waits_once_the_breaker_is_open(
    tmp_path: Path, fault: str
) -> None:
    async with scene(tmp_path) as now:
        now.faults.begin(fault)
        try:
            assert all(await now.ask_all())
            await eventually("the breaker opens", now.shut_off)
            # An open breaker asks nobody: a match is settled when it is returned.
            now.replica.cache.clear_ram()
            match = now.replica.cache.match_prefix([bytes(32)])
            assert match.settled
            match.release()
            assert all(await now.ask_all())
        finally:
            now.faults.heal(fault)
        assert now.replica.core.wrong_blocks == 0

        async def is_back() -> bool:
            await now.ask(0)
            return not now.shut_off()

        await eventually("it is asked again", is_back)
        assert all(await now.ask_all())


@pytest.mark.parametrize("lie", LIES)
async def test_a_record_that_is_not_what_it_should_be_is_never_served(
    tmp_path: Path, lie: str
) -> None:
    async with scene(tmp_path) as now:
        now.faults.begin(lie)
        assert all(await now.ask_all())
        assert now.replica.core.wrong_blocks == 0
        await eventually("it is counted", lambda: now.figure("corrupted_total") > 0)


@pytest.mark.parametrize("lie", LIES)
async def test_control_a_store_without_checksums_serves_wrong_bytes(
    tmp_path: Path, lie: str
) -> None:
    async with scene(tmp_path, plain=True) as now:
        now.faults.begin(lie)
        assert not all(await now.ask_all())
        assert now.replica.core.wrong_blocks > 0


async def test_control_a_client_without_deadline_hangs_while_the_server_is_frozen(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, plain=True) as now:
        tier = PlainTier(now.faults.server.url)
        now.faults.server.freeze()
        hung = asyncio.create_task(asyncio.to_thread(tier.get, [bytes(32)]))
        # Eight times our own tier's deadline, and four times the time to an open breaker.
        done, _ = await asyncio.wait({hung}, timeout=2.0)
        assert not done
        now.faults.server.thaw()
        assert await hung == [None]
        tier.close()


async def test_flipped_bits_on_the_line_are_misses(tmp_path: Path) -> None:
    async with scene(tmp_path) as now:
        for offset in range(300, 200_000, 40_000):
            now.faults.proxy.to_client = Faults(flip_at=offset)
            now.faults.proxy.cut()
            assert all(await now.ask_all())
        assert now.replica.core.wrong_blocks == 0


async def test_a_match_under_way_when_the_server_freezes_settles(tmp_path: Path) -> None:
    async with scene(tmp_path) as now:
        now.faults.server.freeze()
        match = now.replica.cache.match_prefix([bytes(32)] * 3)
        assert not match.settled
        await asyncio.to_thread(settled, match)
        match.release()
        now.faults.server.thaw()
