"""The adaptive policy's formula fed with the true future: a look-ahead, not a proven optimum.

Refuses to be used on live signals: it reads the arrivals of the run that it is scored on.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from bul.scaling.adaptive import POWER, SHARE, SLACK
from bul.scaling.bounds import Bounds
from bul.scaling.rules import RuleState, Want
from bul.scaling.signals import Signals
from bul.simulator.arrivals import Arrivals, Floats
from bul.simulator.replica import ReplicaProfile

__all__ = ["Future", "Oracle", "future_of"]

SMOOTH_TICKS, NOISE_TICKS = 9, 41


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Future:
    """Work in replicas, and the spread around it, in each tick of `tick_s`.

    computed: the arrivals with prompts counted less what a cache without end would hold.
    context_tokens: of a mean sequence, cached ones included.
    """

    tick_s: float
    mean: Floats
    spread: Floats
    computed: Arrivals
    context_tokens: float


def future_of(arrivals: Arrivals, profile: ReplicaProfile, tick_s: float) -> Future:
    """What arrives in each tick: centred means over 2 minutes, noise over 10."""
    context_tokens = arrivals.context_tokens
    if arrivals.paths:
        arrivals = arrivals.past_unbounded_cache()
    ticks = math.ceil(float(arrivals.at_s[-1]) / tick_s) + 1 if len(arrivals) else 1
    index = np.minimum((arrivals.at_s // tick_s).astype(np.int64), ticks - 1)
    prompts = arrivals.prompt_tokens
    alone_s = prompts * (1.0 + profile.prefill_growth * prompts / 2) / profile.prefill_tokens_per_s
    alone_s += arrivals.output_tokens / profile.output_tokens_per_s(context_tokens)
    work = np.bincount(index, weights=alone_s, minlength=ticks) / tick_s
    mean = _centred(work, SMOOTH_TICKS)
    noise2 = _centred((work - mean) ** 2 / np.maximum(mean, 0.1), NOISE_TICKS)
    return Future(tick_s, mean, np.sqrt(noise2) * mean**POWER, arrivals, context_tokens)


def _centred(values: Floats, width: int) -> Floats:
    kernel = np.ones(width)
    counts = np.convolve(np.ones(len(values)), kernel, mode="full")
    sums = np.convolve(values, kernel, mode="full")
    half = width // 2
    return np.asarray((sums / counts)[half : half + len(values)], dtype=np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Oracle:
    """Covers the highest need between now and one cold start ahead. margin: as in `adaptive`."""

    name: ClassVar[str] = "oracle"
    needs: ClassVar[tuple[str, ...]] = ()
    future: Future
    bounds: Bounds = Bounds()
    margin: float = 2.0
    cold_start_s: float = 120.0
    _needs: list[float] = dataclasses.field(init=False, repr=False)
    """The highest need of each tick's look-ahead."""

    def __post_init__(self) -> None:
        need = SHARE * self.future.mean + self.margin * self.future.spread
        ahead = math.ceil(self.cold_start_s / self.future.tick_s) + 2
        padded = np.concatenate((need, np.full(ahead - 1, -np.inf)))
        highest = np.lib.stride_tricks.sliding_window_view(padded, ahead).max(axis=1)
        object.__setattr__(self, "_needs", highest.tolist())

    def desired(self, state: RuleState, signals: Signals, now_s: float) -> tuple[Want, RuleState]:
        del signals
        tick = int(now_s // self.future.tick_s)
        if tick >= len(self._needs):
            return Want(self.bounds.min_replicas, "nothing arrives any more"), state
        need = self._needs[tick]
        return Want(max(math.ceil(need - SLACK), 1), f"true need {need:.1f}"), state
