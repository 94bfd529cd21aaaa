"""The coherency probe: written, read, and deleted on replicas that share a disk and a server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from bul.accounts.keys import hash_key
from bul.cache.contract import Tier
from bul.cache.tiers.disk.tier import DiskTier
from bul.cache.tiers.shared import open_shared_tier
from bul.config import KVCacheConfig, ServeConfig, TimedConfig
from bul.doctor.coherency import probe_coherency
from bul.doctor.findings import Coherency
from bul.inference.timed import TimedCore
from bul.testing.replica import ReplicaUnderTest, running_replica
from bul.testing.valkey import Valkey, running_valkey

# Slow enough to compute that the break-even gate lets a disk be read.
TIMED = TimedConfig(block_bytes=4096, prefill_tokens_per_s=2000.0, decode_tokens_per_s=1000.0)
PROMPT = "a probe: " + " ".join(f"word{number}" for number in range(160))
BODY = {
    "model": "bul-timed",
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 2,
    "temperature": 0,
}
KEYS = {"operator": hash_key("bul-operator"), "team": hash_key("bul-team")}


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


def new_core() -> TimedCore:
    return TimedCore(ServeConfig(port=0), TIMED)


class Forgetful(DiskTier):
    """The control: says that it deleted, and keeps all."""

    def delete(self, keys: Sequence[bytes]) -> int:
        return len(keys)


class Region:
    """Two replicas of one cache secret; `folder` and `server` are what they share."""

    def __init__(self, folder: Path, server: Valkey, disk: type[DiskTier] = DiskTier) -> None:
        self.replicas: list[ReplicaUnderTest] = []
        self._folder, self._server, self._disk = folder, server, disk

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.replicas]

    def tiers(self, core: TimedCore) -> list[Tier]:
        config = KVCacheConfig(shared_url=self._server.url)
        disk = self._disk(self._folder, core.identity, bytes_max=64 << 20)
        return [disk, open_shared_tier(config, core.identity)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                core = new_core()
                replica = running_replica(keys=KEYS, core=core, tiers=self.tiers(core))
                self.replicas.append(await stack.enter_async_context(replica))
            yield

    async def probe(self, key: str = "bul-operator") -> Coherency:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(headers=headers, timeout=30) as client:
            found, why = await probe_coherency(client, self.urls, BODY)
        assert found is not None, why
        return found

    def blocks(self) -> dict[str, float]:
        """In each replica's RAM, and in what they share."""
        stats = [replica.cache.stats() for replica in self.replicas]
        found = {f"ram {at}": parts["ram"]["blocks"] for at, parts in enumerate(stats)}
        return found | {"disk": stats[0]["disk"]["blocks"]}


async def test_the_probe_is_read_on_the_other_replica_and_then_gone_from_every_tier(
    tmp_path: Path, valkey: Valkey
) -> None:
    region = Region(tmp_path, valkey)
    async with region.running():
        found = await region.probe()
        assert found.cached_tokens > 0
        assert found.same_text
        assert (found.left, found.kept_because) == ([], "")
        assert set(region.blocks().values()) == {0.0}
        async with httpx.AsyncClient(headers={"authorization": "Bearer bul-operator"}) as client:
            for url in region.urls:
                page = (await client.post(f"{url}/cache/explain", json=BODY)).json()
                assert (page["blocks"] > 2, page["cached"]) == (True, 0)
            # Asked again it is computed again: nobody has it.
            again = await client.post(f"{region.urls[1]}/v1/chat/completions", json=BODY)
        assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    # Nor does a replica that starts over the same folder and server.
    fresh = Region(tmp_path, valkey)
    async with fresh.running():
        assert (await fresh.probe()).left == []


async def test_a_tier_that_forgets_to_delete_is_named(tmp_path: Path, valkey: Valkey) -> None:
    region = Region(tmp_path, valkey, Forgetful)
    async with region.running():
        found = await region.probe()
    assert found.left == [f"disk of {url}" for url in region.urls]
    assert found.cached_tokens > 0


async def test_a_server_that_is_away_is_unsure_and_no_failure(
    tmp_path: Path, valkey: Valkey
) -> None:
    region = Region(tmp_path, valkey)
    async with region.running():
        valkey.kill()
        try:
            found = await region.probe()
        finally:
            valkey.start()
    assert found.left == []
    assert "shared of http://" in found.kept_because


async def test_only_the_operator_deletes_and_only_by_its_own_words(
    tmp_path: Path, valkey: Valkey
) -> None:
    region = Region(tmp_path, valkey)
    async with region.running():
        found = await region.probe("bul-team")
        assert "give the operator's key" in found.kept_because
        assert region.blocks()["disk"] > 0
        headers = {"authorization": "Bearer bul-operator"}
        async with httpx.AsyncClient(headers=headers, base_url=region.urls[0]) as client:
            # The operator's keys have the operator's salt: the team's blocks are not reached.
            mine = await client.post("/cache/delete", json=BODY)
            forged = await client.post("/cache/delete", json=BODY | {"keys": ["00" * 32]})
        assert mine.json()["left"] == {"ram": 0, "disk": 0, "shared": 0}
        assert region.blocks()["ram 0"] > 0
        assert forged.status_code == 400


async def test_servers_without_deletion_are_said_to_keep_it(tmp_path: Path, valkey: Valkey) -> None:
    region = Region(tmp_path, valkey)
    async with region.running():
        for replica in region.replicas:
            replica.app._routes.pop(b"/cache/delete")  # as an older one
        found = await region.probe()
    assert found.cached_tokens > 0
    assert found.left == []
    assert "it has no such page" in found.kept_because
