"""Draws the next token: greedy, or with randomness that depends on the seed and the position alone.

Refuses to carry a random state from token to token: the n-th draw has a generator of its own,
seeded by H(seed, n) (counter-based randomness, after Salmon et al., "Parallel Random Numbers: As
Easy as 1, 2, 3", SC 2011). So a reply that breaks off after n tokens goes on elsewhere with the
draws that it would have had; a state could not be moved ahead by counting, since the engine draws
nothing where top-p leaves one candidate. A generator costs about 1.4 us.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b

from bul.inference.binding import llama_cpp
from bul.inference.contract import Sampling

__all__ = ["Sampler"]


class Sampler:
    """Of one reply, of which `drawn` tokens have been drawn before."""

    def __init__(self, sampling: Sampling, drawn: int) -> None:
        self._sampling = sampling
        self._drawn = drawn
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._greedy = _chain() if sampling.temperature <= 0.0 else None
        if self._greedy is not None:
            self._greedy.add_greedy()

    def sample(self, context: llama_cpp.LlamaContext, output: int) -> int:
        """The next token, from the logits of this output of the last call."""
        chain = self._greedy or self._random()
        self._drawn += 1
        token: int = chain.sample(context, output)
        return token

    def _random(self) -> llama_cpp.LlamaSampler:
        chain = _chain()
        if self._sampling.top_p < 1.0:
            chain.add_top_p(self._sampling.top_p, 1)
        chain.add_temp(self._sampling.temperature)
        digest = blake2b(b"%d/%d" % (self._seed, self._drawn), digest_size=4).digest()
        # All ones means "random" to the engine: fold it, so that every seed repeats.
        chain.add_dist(int.from_bytes(digest, "little") % 0xFFFF_FFFF)
        return chain


def _chain() -> llama_cpp.LlamaSampler:
    return llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
