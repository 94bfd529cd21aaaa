"""Vertical scaling: what a machine of that size should be told. Pure numbers.

Refuses to take everything: the system and the weights keep 4 GiB of RAM, half of what is left
stays free for the engine's own KV and buffers, and half of the free disk stays free.

Worked number: 16 GiB, one replica, 23,040 bytes of KV a token (the built-in model): (16 - 4) / 2 =
6 GiB of RAM, 279,616 tokens. The guide's advice goes up in steps, and so do these: threads and
prefetch by cores (its phases have `prefetch_size` 8, 16 and 32, its large machine 64 workers).
"""

from __future__ import annotations

import dataclasses

__all__ = ["Machine", "Sizes", "sizes_for"]

GIB = 1 << 30
RESERVED_RAM_BYTES = 4 * GIB
RAM_SHARE = 0.5
RAM_SHARE_MIN = 1 / 16
"""Of all RAM: what a machine keeps for KV that has less than the reserve."""
DISK_SHARE = 0.5
PERSISTENCE_BYTES_MIN = 1 * GIB
"""With less than that, a disk tier holds less than RAM and only costs."""
WORKERS_MIN, WORKERS_MAX = 4, 64
PREFETCH_BY_CORES = ((16, 32), (5, 16), (1, 8))
PREFETCH_RAM_SHARE = 1 / 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """ram_bytes: of the machine or its control group. disk_free_bytes: where KV will lie.

    replicas: how many share this machine. The disk folder is one for all of them.
    """

    ram_bytes: int
    cores: int
    disk_free_bytes: int
    replicas: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Fields of `KVCacheConfig`, by their names."""

    max_tokens: int
    ram_bytes_max: int
    disk_bytes_max: int
    enable_persistence: bool
    num_workers: int
    prefetch_size: int


def sizes_for(machine: Machine, *, token_bytes: int, block_tokens: int) -> Sizes:
    """What each replica of `machine` is told. token_bytes: of KV, one token, all layers."""
    assert machine.ram_bytes > 0, machine
    assert machine.cores > 0, machine
    assert machine.replicas > 0, machine
    assert token_bytes > 0, token_bytes
    usable = (machine.ram_bytes - RESERVED_RAM_BYTES) * RAM_SHARE
    ram_bytes = int(max(usable, machine.ram_bytes * RAM_SHARE_MIN)) // machine.replicas
    block_bytes = token_bytes * block_tokens
    blocks = max(1, ram_bytes // block_bytes)
    disk_bytes = int(machine.disk_free_bytes * DISK_SHARE)
    return Sizes(
        max_tokens=blocks * block_tokens,
        ram_bytes_max=max(1 << 20, ram_bytes),
        disk_bytes_max=max(1 << 20, disk_bytes),
        enable_persistence=disk_bytes >= PERSISTENCE_BYTES_MIN,
        num_workers=min(WORKERS_MAX, max(WORKERS_MIN, 2 * machine.cores // machine.replicas)),
        prefetch_size=min(_prefetch(machine.cores), max(1, int(blocks * PREFETCH_RAM_SHARE))),
    )


def _prefetch(cores: int) -> int:
    return next(size for least, size in PREFETCH_BY_CORES if cores >= least)
