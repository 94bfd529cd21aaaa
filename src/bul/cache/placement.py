"""Break-even: whether loading blocks from a tier beats computing them again. Pure numbers.

It refuses a load that would lose by what was measured; it never refuses for want of measurements,
and lets every EXPLORE_EVERY-th refused load through, so that a tier that has become faster is seen.

What a load costs is fitted as `seconds = latency + bytes / bandwidth` by least squares over
decaying weights (about the last 64 loads). Worked number: 14 blocks of 1.47 MB from a disk at
1 GB/s take 21 ms; computing their 896 tokens at 85 tokens/s takes 10.5 s: load. On a GPU that
prefills 20,000 tokens/s they take 45 ms, and over a 100 MB/s network 206 ms: compute.
"""

from __future__ import annotations

import dataclasses

__all__ = ["BreakEven", "LoadCost", "PrefillRate", "Verdict", "judge"]

EXPLORE_EVERY = 32
DECAY = 1 - 1 / 64


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """load: whether to. reason: one clause for `explain` and the logs."""

    load: bool
    reason: str


def judge(load_s: float | None, compute_s: float | None, refusals: int) -> Verdict:
    """`refusals`: how many loads in a row were refused before this one."""
    if load_s is None:
        return Verdict(load=True, reason="the tier has not been measured yet")
    if compute_s is None:
        return Verdict(load=True, reason="prefill has not been measured yet")
    if load_s <= compute_s:
        return Verdict(load=True, reason=f"loading takes {load_s:.3f} s, not {compute_s:.3f} s")
    if refusals >= EXPLORE_EVERY - 1:
        return Verdict(load=True, reason="measured again after many refusals")
    return Verdict(load=False, reason=f"computing takes {compute_s:.3f} s, not {load_s:.3f} s")


class PrefillRate:
    """Tokens per second, over decaying weights; `None` until measured."""

    __slots__ = ("_seconds", "_tokens")

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        if tokens <= 0 or not seconds > 0:
            return
        self._tokens = self._tokens * DECAY + tokens
        self._seconds = self._seconds * DECAY + seconds

    @property
    def tokens_per_s(self) -> float | None:
        return self._tokens / self._seconds if self._seconds else None

    def seconds(self, tokens: int) -> float | None:
        """How long computing `tokens` takes."""
        rate = self.tokens_per_s
        return None if rate is None else tokens / rate


class LoadCost:
    """Seconds as a function of bytes; `None` until measured."""

    __slots__ = ("_n", "_x", "_xx", "_xy", "_y")

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, size_bytes: int, seconds: float) -> None:
        if size_bytes <= 0 or not seconds >= 0:
            return
        x = float(size_bytes)
        self._n = self._n * DECAY + 1
        self._x = self._x * DECAY + x
        self._y = self._y * DECAY + seconds
        self._xx = self._xx * DECAY + x * x
        self._xy = self._xy * DECAY + x * seconds

    def seconds(self, size_bytes: int) -> float | None:
        """How long loading `size_bytes` takes."""
        if not self._n:
            return None
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        if spread <= 1e-6 * mean_x * mean_x:  # all of one size: in proportion
            return mean_y * size_bytes / mean_x
        slope = max(0.0, (self._xy / self._n - mean_x * mean_y) / spread)
        slope = min(slope, mean_y / mean_x)  # a latency is never negative
        return mean_y + slope * (size_bytes - mean_x)

    @property
    def bytes_per_s(self) -> float | None:
        return self._x / self._y if self._y else None


class BreakEven:
    """The gate of one tier: measurements in, verdicts out. Not thread-safe."""

    __slots__ = ("_cost", "_prefill", "_refusals", "enabled", "refused_total")

    def __init__(self, prefill: PrefillRate, *, enabled: bool = True) -> None:
        self._prefill = prefill
        self._cost = LoadCost()
        self._refusals = 0
        self.enabled = enabled
        self.refused_total = 0

    def ask(self, size_bytes: int, tokens: int) -> Verdict:
        """Whether to load `tokens` tokens of KV, `size_bytes` bytes. Counts refusals."""
        if not self.enabled:
            return Verdict(load=True, reason="break_even is off")
        load_s, compute_s = self._cost.seconds(size_bytes), self._prefill.seconds(tokens)
        verdict = judge(load_s, compute_s, self._refusals)
        self._refusals = 0 if verdict.load else self._refusals + 1
        self.refused_total += not verdict.load
        return verdict

    def observe(self, size_bytes: int, seconds: float) -> None:
        """A load took this long."""
        self._cost.observe(size_bytes, seconds)

    @property
    def bytes_per_s(self) -> float:
        """Measured, 0.0 while unknown."""
        return self._cost.bytes_per_s or 0.0
