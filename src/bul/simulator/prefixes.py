"""What one simulated replica keeps of prompts: blocks by the production eviction code.

Refuses to hold bytes. A prompt is matched when its prefill begins and its blocks come in when the
prefill is done, as in the engine; prompts of one replica are computed one after the other, so the
next one with the same prefix finds it. Only full blocks count, and at least one token is computed.
"""

from __future__ import annotations

from bul.cache.eviction.contract import Access, EvictionPolicy
from bul.inference.batching import importable_blocks
from bul.simulator.job import Job

__all__ = ["PrefixCache"]


class PrefixCache:
    """One replica's cache. `policy` is empty at first, as a replica that has just started."""

    __slots__ = ("_policy", "block_tokens")

    def __init__(self, policy: EvictionPolicy, block_tokens: int) -> None:
        self._policy = policy
        self.block_tokens = block_tokens

    def match(self, job: Job) -> None:
        """Says what of the prompt is here: sets the job's `cached_tokens` and `prefill_tokens`."""
        prompt, block_tokens = job.prompt_tokens, self.block_tokens
        held = importable_blocks(prompt, block_tokens, self._policy.match(job.path))
        job.cached_tokens = held * block_tokens
        job.prefill_tokens = prompt - job.cached_tokens

    def store(self, job: Job, now_s: float) -> None:
        """The prompt is computed: its blocks come in, others may leave."""
        if job.path:
            self._policy.access(Access(path=job.path, now_s=now_s, block_tokens=self.block_tokens))

    def finish(self, job: Job) -> None:
        self._policy.finish(job.path, job.output_tokens)
