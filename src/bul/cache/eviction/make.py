"""From a policy's name to the policy: the one list of what can be chosen.

It refuses names that it does not know, and capacities under one block.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from bul.cache.eviction.adaptive import Adaptive
from bul.cache.eviction.arc import Arc
from bul.cache.eviction.contract import EvictionPolicy
from bul.cache.eviction.fifo import Fifo
from bul.cache.eviction.lecar import Lecar
from bul.cache.eviction.lfu import Lfu
from bul.cache.eviction.lru import Lru
from bul.cache.eviction.s3fifo import S3Fifo
from bul.errors import ConfigError

__all__ = ["POLICY_NAMES", "make_policy"]

_MAKERS: dict[str, Callable[[int, int], EvictionPolicy]] = {
    "adaptive": Adaptive,
    "lru": Lru,
    "fifo": Fifo,
    "lfu": Lfu,
    "arc": Arc,
    "s3fifo": S3Fifo,
    "lecar": Lecar,
}

POLICY_NAMES: tuple[str, ...] = tuple(_MAKERS)


def make_policy(name: str, capacity: int, seed: int = 0) -> EvictionPolicy:
    """The policy called `name`, empty, for `capacity` blocks.

    The same seed and the same calls give the same evictions. Raises ConfigError for an unknown
    name or a capacity under 1.
    """
    maker = _MAKERS.get(name)
    if maker is None:
        near = difflib.get_close_matches(name, POLICY_NAMES, n=1)
        known = ", ".join(POLICY_NAMES)
        hint = f"did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"eviction policy must be one of {known}, was {name!r}", hint=hint)
    if capacity < 1:
        raise ConfigError(f"capacity must be at least 1 block, was {capacity}")
    return maker(capacity, seed)
