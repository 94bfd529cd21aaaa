"""A cache engine's caller in a few lines: chains of keys, their payloads, whole requests.

It refuses to wait for ever: a match that does not settle in WAIT_S fails the test.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from bul.blocks.chain import block_keys, chain_root
from bul.blocks.prefix import PrefixCache, PrefixMatch, RequestFacts
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.testing.tiers import MemoryTier

__all__ = [
    "BLOCK_TOKENS",
    "WAIT_S",
    "MakeEngine",
    "cached",
    "chain",
    "filled",
    "payloads",
    "settled",
    "store",
]

BLOCK_TOKENS = 4
WAIT_S = 30.0
MakeEngine = Callable[..., UltraAdaptiveKVCacheEngine]
"""An engine over the tiers given, with settings by name."""


def chain(blocks: int, first_token: int = 0, *, identity: bytes = bytes(32)) -> list[bytes]:
    """Keys of `blocks` blocks of tokens that count up from `first_token`."""
    tokens = range(first_token, first_token + blocks * BLOCK_TOKENS)
    return block_keys(chain_root(identity, b""), tokens, BLOCK_TOKENS)


def payloads(keys: Sequence[bytes], size: int = 64) -> list[bytes]:
    """What belongs to `keys`: `size` bytes each (a multiple of 32), different for each key."""
    return [key * (size // len(key)) for key in keys]


def settled(match: PrefixMatch) -> PrefixMatch:
    """The match, once it is final."""
    ready = threading.Event()
    match.when_settled(ready.set)
    assert ready.wait(WAIT_S), "the match never settled"
    return match


def store(
    cache: PrefixCache,
    keys: Sequence[bytes],
    size: int = 64,
    facts: RequestFacts = RequestFacts(),
) -> int:
    """A whole request: match, set what is missing, release; how many blocks were cached."""
    match = settled(cache.match_prefix(keys, facts))
    found = len(match.blocks)
    cache.set_blocks(keys, found, payloads(keys, size)[found:], facts)
    match.release()
    return found


def cached(cache: PrefixCache, keys: Sequence[bytes], size: int = 64) -> int:
    """How many leading blocks the cache has; every one of them is checked."""
    match = settled(cache.match_prefix(keys))
    assert [bytes(block) for block in match.blocks] == payloads(keys, size)[: len(match.blocks)]
    match.release()
    return len(match.blocks)


def filled(keys: Sequence[bytes], make: MakeEngine) -> MemoryTier:
    """A tier that an engine wrote `keys` to."""
    tier = MemoryTier()
    engine = make(tier)
    store(engine, keys)
    assert engine.flush(WAIT_S)
    tier.calls.clear()
    return tier
