"""The distributed tier that `[cache]` describes.

Refuses to start without what it needs, and says what is missing: a second rank, torch, CUDA, a
secret beyond loopback. The configuration itself is valid anywhere. Does not wait for other ranks.
"""

from __future__ import annotations

import ipaddress

from bul.blocks.identity import Identity
from bul.cache.tiers.distributed.link import Links
from bul.cache.tiers.distributed.tier import DistributedTier, World
from bul.clock import Clock
from bul.config import KVCacheConfig
from bul.errors import ConfigError, TierUnavailable

__all__ = ["open_distributed_tier"]

EXAMPLE = 'such as distributed_ranks = ["127.0.0.1:7701", "127.0.0.1:7702"]'


def open_distributed_tier(
    config: KVCacheConfig, identity: Identity | bytes, *, clock: Clock | None = None
) -> DistributedTier:
    """Listens when it returns. Raises TierUnavailable, ConfigError."""
    addresses = tuple(_address(text) for text in config.distributed_ranks)
    if len(addresses) < 2:
        raise TierUnavailable(
            f"enable_distributed needs a second rank: distributed_ranks names {len(addresses)}",
            hint=f"name all of them, {EXAMPLE}, or set enable_distributed = false",
        )
    if config.distributed_rank >= len(addresses):
        last = len(addresses) - 1
        raise ConfigError(f"distributed_rank must be in [0, {last}], was {config.distributed_rank}")
    if not config.distributed_secret and not all(_is_loopback(host) for host, _ in addresses):
        hint = "the same long random text on every rank"
        raise ConfigError("ranks beyond loopback need distributed_secret", hint=hint)
    host, port = addresses[config.distributed_rank]
    links = Links(
        config.distributed_backend, host, config.distributed_timeout_s, config.distributed_rank
    )
    world = World(
        rank=config.distributed_rank,
        addresses=addresses,
        bytes_max=config.distributed_bytes_max,
        secret=config.distributed_secret,
        timeout_s=config.distributed_timeout_s,
        channels_max=config.num_workers,
    )
    try:
        return DistributedTier(world, identity, links=links, clock=clock)
    except OSError as error:
        raise TierUnavailable(
            f"rank {config.distributed_rank} cannot listen on {host}:{port}: {error.strerror}",
            hint="is it this host's address, and does another process use the port?",
        ) from error


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"distributed_ranks: {text!r} is no host:port", hint=EXAMPLE)
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
