"""One request inside the simulator.

Refuses to know the future: what is not yet known is nan, and becomes a number when it happens.
"""

from __future__ import annotations

import math

__all__ = ["Job"]


class Job:
    """Times are virtual seconds. `prefill_tokens`: what is to compute of `prompt_tokens`.

    path: ids of the prompt's full blocks, root first; empty when they are not known. ahead:
    requests that were under way at its replica; believed_tokens: what the router thought was to
    compute. Mutable and plain: millions are made in a run.
    """

    __slots__ = (
        "ahead",
        "arrived_s",
        "believed_tokens",
        "cached_tokens",
        "done_s",
        "first_token_s",
        "output_tokens",
        "path",
        "prefill_tokens",
        "prompt_tokens",
        "started_s",
    )

    def __init__(
        self,
        arrived_s: float,
        prompt_tokens: int,
        output_tokens: int,
        path: tuple[int, ...] = (),
    ) -> None:
        self.arrived_s = arrived_s
        self.prompt_tokens = self.prefill_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.path = path
        self.cached_tokens = 0
        self.believed_tokens = 0.0
        self.ahead = 0
        self.started_s = math.nan
        self.first_token_s = math.nan
        self.done_s = math.nan

    @property
    def context_tokens(self) -> float:
        """Tokens of prompt and reply while it decodes, on average."""
        return self.prompt_tokens + self.output_tokens / 2
