"""Block keys: 32 bytes that name (identity, tenant salt, all tokens up to a block's end).

Refuses keys from outside: a key is only ever the result of hashing tokens here, so a
client can at most choose tokens, never a key.

    root  = H(identity digest, salt)
    key_i = H(key_{i-1}, tokens [i*block_tokens, (i+1)*block_tokens) as little-endian u32)

H is BLAKE2b-256: keyed by its parent, collision-resistant (the peers' cache-poisoning
reports come from Python's hash() and from digests cut to 16 bits), and about 1 us a block.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b

__all__ = ["KEY_BYTES", "block_keys", "chain_root"]

KEY_BYTES = 32


def chain_root(identity_digest: bytes, salt: bytes) -> bytes:
    """The parent of a chain's first block. `identity_digest` is 32 bytes; `salt` any length."""
    assert len(identity_digest) == KEY_BYTES, len(identity_digest)
    hasher = blake2b(identity_digest, digest_size=KEY_BYTES, person=b"bul-chain-root")
    hasher.update(salt)
    return hasher.digest()


def block_keys(root: bytes, tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    """Keys of the full blocks of `tokens`, in order; a partial last block has none.

    `tokens` are ids in [0, 2**32). Cost: about 1.5 us a block of 64 tokens.
    """
    blocks = len(tokens) // block_tokens
    packed = array("I", tokens[: blocks * block_tokens])
    if sys.byteorder == "big":
        packed.byteswap()
    view = memoryview(packed).cast("B")
    block_bytes = block_tokens * 4
    keys = []
    parent = root
    for start in range(0, blocks * block_bytes, block_bytes):
        # 32 fixed bytes of parent, then a fixed number of token bytes: no length prefix needed.
        parent = blake2b(
            parent + view[start : start + block_bytes], digest_size=KEY_BYTES, person=b"bul-block"
        ).digest()
        keys.append(parent)
    return keys
