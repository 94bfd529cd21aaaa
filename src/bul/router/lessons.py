"""What the first byte of an answer teaches: rates, what is late, and how much a replica can take.

Refuses to learn from a stream that goes on: its prompt was longer than it looks.
"""

from __future__ import annotations

import typing

from bul.router.prompt import Prompt
from bul.router.upstream import UpstreamConnection

if typing.TYPE_CHECKING:
    from bul.router.app import Router

__all__ = ["learn"]


def learn(router: Router, prompt: Prompt, upstream: UpstreamConnection) -> None:
    """The answer to `prompt` has begun over `upstream`."""
    replica, to_compute = upstream.replica, upstream.to_compute
    waited_s = router.now_s() - upstream.since_s
    kind = router.first_bytes.kind(prompt, to_compute)
    if kind is not None:
        kind.add(waited_s)
    if prompt.hints:
        replica.residency.computed(prompt.hints, router.coarse_s)
        router.rates.observe(to_compute, upstream.ahead, waited_s * 1000)
    target_s = router.config.first_byte_target_s
    if target_s and waited_s > target_s:
        replica.limit.late(upstream.ahead, target_s / waited_s)
    elif upstream.status != 429:
        replica.limit.good(replica.in_flight)
