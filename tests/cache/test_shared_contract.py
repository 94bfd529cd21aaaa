"""The shared tier against the contract that every tier keeps, on real servers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from bul.cache.tiers.shared import SharedTier, open_shared_tier
from bul.config import KVCacheConfig
from bul.testing.tier_contract import TierContract
from bul.testing.valkey import Valkey, running_valkey

IDENTITIES = (bytes([number]) * 32 for number in itertools.count(1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    socket = tmp_path_factory.mktemp("socket") / "s"
    lines = (f"unixsocket {socket}", "unixsocketperm 700")
    with running_valkey(tmp_path_factory.mktemp("valkey"), lines=lines) as server:
        yield server


def opened(config: KVCacheConfig) -> Iterator[SharedTier]:
    """A tier with a namespace of its own, so that one server serves all tests."""
    tier = open_shared_tier(config, next(IDENTITIES))
    yield tier
    tier.close()


class TestSharedTier(TierContract):
    @pytest.fixture
    def tier(self, server: Valkey) -> Iterator[SharedTier]:
        yield from opened(KVCacheConfig(shared_url=server.url))
