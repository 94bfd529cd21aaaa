"""The shared tier that `[cache]` describes.

Refuses to wait for a server: one that is away now is a miss until it is back.
"""

from __future__ import annotations

from bul.blocks.identity import Identity
from bul.cache.tiers.shared.node import ConnectionPlan
from bul.cache.tiers.shared.servers import make_servers
from bul.cache.tiers.shared.tier import SharedTier
from bul.clock import Clock, SystemClock
from bul.config import KVCacheConfig
from bul.config.shared_url import parse_shared_url
from bul.errors import TierUnavailable

__all__ = ["open_shared_tier"]


def open_shared_tier(
    config: KVCacheConfig, identity: Identity | bytes, *, clock: Clock | None = None
) -> SharedTier:
    """Connects with the first call. Raises TierUnavailable if no server is named."""
    if not config.shared_url:
        raise TierUnavailable("the shared tier needs a server", hint="set shared_url")
    clock = clock or SystemClock()
    address = parse_shared_url(config.shared_url)
    plan = ConnectionPlan(
        address=address,
        timeout_s=config.shared_timeout_s,
        # One for each I/O thread, and one for who looks in from elsewhere.
        connections_max=config.num_workers + 1,
        ca_file=config.shared_ca_file,
        cert_file=config.shared_cert_file,
        key_file=config.shared_key_file,
        read_only=address.kind == "cluster",
    )
    return SharedTier(
        make_servers(plan, clock), identity, compression=config.compression, clock=clock
    )
