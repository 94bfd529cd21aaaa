"""Identity: everything that makes two KV blocks interchangeable, as one digest.

Refuses to guess: every field is named by the engine that made the bytes, and a
field that is left out would let wrong KV look right (the notes on peers' faults
list a case for weights, dtype and adapter each).
"""

from __future__ import annotations

import dataclasses
import hashlib

__all__ = ["FORMAT_VERSION", "Identity"]

FORMAT_VERSION = 1
"""Version of the block payload layout [layers, K/V, tokens, row]."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What must be equal for KV bytes to be exchanged. Strings; empty means "none".

    weights: hex digest of the model file. tokenizer: digest of vocabulary, merges and
    special-token settings. adapter: digests and scales of adapters. kv_dtype: of K and V.
    layout: shape and strides of the payload. rope: base, scale, scaling type.
    engine: name and build of the engine. instruction_set: CPU or GPU features that change
    rounding. prefill_call_tokens: the canonical cut. flash_attention: "on"/"off".
    quantisation: of the stored bytes, not of the weights.
    """

    weights: str
    tokenizer: str
    adapter: str
    kv_dtype: str
    layout: str
    layers: int
    row_bytes: int
    block_tokens: int
    rope: str
    engine: str
    instruction_set: str
    prefill_call_tokens: int
    flash_attention: str
    quantisation: str = "none"
    format_version: int = FORMAT_VERSION

    def digest(self) -> bytes:
        """32 bytes; equal exactly when every field is equal."""
        hasher = hashlib.blake2b(digest_size=32, person=b"bul-identity")
        for name, value in sorted(dataclasses.asdict(self).items()):
            for part in (name, type(value).__name__, str(value)):
                encoded = part.encode()
                # Length-prefixed: ("ab", "c") and ("a", "bc") must differ.
                hasher.update(len(encoded).to_bytes(4, "little") + encoded)
        return hasher.digest()
