"""A cluster with TLS and ACL, and sentinels: found, spread, and still read when a primary dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bul.cache.contract import BlockRecord
from bul.cache.tiers.shared import SharedTier, open_shared_tier
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable
from bul.testing.tier_contract import TierContract, chain_of_records, read
from bul.testing.valkey import (
    TlsFiles,
    Valkey,
    make_tls_files,
    running_cluster,
    running_sentinels,
    until,
)

pytestmark = pytest.mark.slow

Cluster = tuple[Sequence[Valkey], TlsFiles]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries and a replica of each."""
    folder = tmp_path_factory.mktemp("cluster")
    tls = make_tls_files(folder)
    with running_cluster(folder, tls=tls) as servers:
        yield servers, tls


def config_of(cluster: Cluster, url: str = "") -> KVCacheConfig:
    servers, tls = cluster
    _, _, rest = servers[0].url.partition("://")
    more = ",".join(f"127.0.0.1:{server.port}" for server in servers[1:])
    return KVCacheConfig(
        shared_url=url or f"rediss+cluster://{rest},{more}",
        # The first connection is a TLS handshake on a busy machine.
        shared_timeout_s=2.0,
        shared_ca_file=str(tls.ca),
        shared_cert_file=str(tls.cert),
        shared_key_file=str(tls.key),
    )


class TestSharedTierInAClusterWithTlsAndAcl(TierContract):
    @pytest.fixture
    def tier(self, cluster: Cluster) -> Iterator[SharedTier]:
        tier = open_shared_tier(config_of(cluster), bytes(32))
        yield tier
        tier.clear()
        tier.close()


def test_who_has_no_certificate_or_another_password_is_turned_away(cluster: Cluster) -> None:
    servers, _ = cluster
    good = config_of(cluster)
    url = servers[0].url
    plain = url.replace("rediss://", "redis://")
    wrong = url.replace("secret", "guess")
    for config in (
        KVCacheConfig(shared_url=url, shared_ca_file=good.shared_ca_file),
        KVCacheConfig(shared_url=plain),
        config_of(cluster, wrong),
    ):
        tier = open_shared_tier(config, bytes(32))
        with pytest.raises(TierUnavailable):
            tier.probe()
        tier.close()


def test_a_killed_primary_costs_nothing_that_has_a_replica(cluster: Cluster) -> None:
    """The last one in this file: the cluster is another one afterwards."""
    servers, _ = cluster
    tier = open_shared_tier(config_of(cluster), b"k" * 32)
    records = chain_of_records(48)
    keys = [record.key for record in records]
    payloads = [record.payload for record in records]
    assert tier.set(records) == 48
    per_server = [server.ask("DBSIZE") for server in servers[:3]]
    assert min(per_server) > 0, "spread over all of them"
    # Each primary tells when its replica has everything: the kill must not beat replication.
    for server in servers[:3]:
        server.ask("WAIT", 1, 5000)
    servers[0].kill()
    # At once, from its replica, which nobody has promoted yet.
    assert read(tier, keys) == payloads
    until("another one is primary", lambda: b"role:master" in info(servers[3]), deadline_s=15)
    assert read(tier, keys) == payloads
    more = chain_of_records(48, first_token=5000)
    until("everything can be written again", lambda: stored(tier, more) == 48, deadline_s=15)
    assert tier.match([record.key for record in more]) == 48
    tier.close()


def stored(tier: SharedTier, records: Sequence[BlockRecord]) -> int:
    """How many are there now; none while nobody takes them."""
    try:
        return tier.set(records)
    except TierUnavailable:
        return 0


def info(server: Valkey) -> bytes:
    with server.client() as client:
        client.response_callbacks.clear()
        found = client.execute_command("INFO", "replication")
        assert isinstance(found, bytes)
        return found


def test_when_the_primary_dies_the_sentinels_name_another(tmp_path: Path) -> None:
    with running_sentinels(tmp_path) as (primary, replica, sentinel):
        url = f"redis+sentinel://{sentinel.url.removeprefix('redis://')}/main"
        tier = open_shared_tier(KVCacheConfig(shared_url=url), bytes(32))
        records = chain_of_records(8)
        keys = [record.key for record in records]
        assert tier.set(records) == 8
        primary.ask("WAIT", 1, 5000)
        primary.kill()
        assert read(tier, keys) == [record.payload for record in records]
        until("the replica is primary", lambda: b"role:master" in info(replica), deadline_s=15)
        more = chain_of_records(8, first_token=5000)

        until("it takes writes", lambda: stored(tier, more) == 8, deadline_s=15)
        assert tier.match(keys) == 8
        tier.close()
