"""What the adaptive policy believes: two models of reuse, averaged, turned into an index by age.

It refuses to learn more often than LEARN_REQUESTS and STEPS_PER_S_MAX allow, so that a flood of
requests does not become a flood of training.

The two are averaged in the logarithm of the hazard: the rates are right early and never far off,
the net finds what factors mean together. In a prototype, on the four traces that the constants were
chosen on, at 5 % of their footprint, the rates alone gained up to 1.9 points of token hit ratio on
LRU, the net alone up to 1.8, both 2.1 to 2.3.
"""

from __future__ import annotations

import array
import functools
from collections.abc import Callable

import numpy as np

from bul.cache.eviction.adaptive_ages import age_position, reuse_index
from bul.cache.eviction.adaptive_log import ReuseLog
from bul.cache.eviction.adaptive_net import ReuseNet
from bul.cache.eviction.adaptive_rates import ReuseRates
from bul.cache.eviction.adaptive_request import TOUCH_CLASSES, RequestMemory

__all__ = ["ReuseModel"]

LEARN_REQUESTS = 64
"""The rates are fitted every so many requests; before the first fit there is no opinion."""
BATCH_RECORDS = 256
STEPS_PER_REQUEST = 0.5
STEPS_PER_S_MAX = 20.0
STEPS_SAVED_MAX = 64.0
"""Steps that a quiet time may save up for a burst, and the first steps of a new net."""
CURVE_REQUESTS_MAX = 32
RENEWALS_PER_REQUEST = 8
"""A curve is worked out again when it is needed and so many requests old, but not too many of them
at once: among a million blocks nearly every curve that is looked at is old."""
NET_SHARE = 0.5
HAZARD_MAX = 0.95


def _at_once(lesson: Callable[[], None]) -> None:
    lesson()


class ReuseModel:
    """Learns from the log; answers with an index.

    Lessons go to `submit`. In another thread they read the log while it is written and change the
    weights while they are read: each number is an old or a new one, and both are estimates.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.log = ReuseLog()
        self._rates = ReuseRates()
        self._net = ReuseNet(self._random)
        self._requests = 0
        self._steps_wanted = 0.0
        self._steps_allowed = STEPS_SAVED_MAX
        self._arrived_s = 0.0
        self._renewals = 0
        self._begun = False
        self.ready = False  # once a fit is done, not once it was asked for
        self.submit: Callable[[Callable[[], None]], None] = _at_once

    def arrived(self, now_s: float) -> None:
        """A request came and its records are in the log: learn, if it is time."""
        self._requests += 1
        self._renewals = RENEWALS_PER_REQUEST
        fit = self._requests % LEARN_REQUESTS == 0
        if fit and not self._begun:
            self._steps_wanted = STEPS_SAVED_MAX
            self._begun = True
        if self._begun:
            self._steps_wanted = min(self._steps_wanted + STEPS_PER_REQUEST, STEPS_SAVED_MAX)
        earned = (now_s - self._arrived_s) * STEPS_PER_S_MAX
        self._steps_allowed = min(self._steps_allowed + earned, STEPS_SAVED_MAX)
        self._arrived_s = now_s
        steps = int(min(self._steps_wanted, self._steps_allowed))
        self._steps_wanted -= steps
        self._steps_allowed -= steps
        if fit or steps:
            self.submit(functools.partial(self._learn, fit, steps, now_s, len(self.log)))

    def _learn(self, fit: bool, steps: int, now_s: float, records: int) -> None:
        if fit:
            self._rates.fit(self.log.observe(now_s, slice(0, records)))
        for _ in range(steps):
            chosen = self._random.integers(0, records, BATCH_RECORDS)
            self._net.fit(self.log.observe(now_s, chosen))
        self.ready = self.ready or fit

    def ended(self, request: RequestMemory, output_tokens: int) -> None:
        """The request's output is known now."""
        request.output_tokens = output_tokens
        request.describe()
        self.log.described_anew(request)
        request.curves = None

    def prepare(self, request: RequestMemory) -> None:
        """Work out the curve of its last block now, not when 64 leaves are compared at once."""
        if self.ready and request.residents:
            self.index(request, request.tail_touches, 0.0)

    def index(self, request: RequestMemory, touches: int, age_s: float) -> float:
        """Expected hits per second of a block of touch class `touches`, last used by `request`."""
        curves = request.curves
        old = self._requests - request.curves_number > CURVE_REQUESTS_MAX
        if curves is None or (old and self._renewals > 0):
            self._renewals -= 1
            curves = request.curves = [None] * TOUCH_CLASSES
            request.curves_number = self._requests
        curve = curves[touches]
        if curve is None:
            curve = curves[touches] = self._curve(request, touches)
        position = age_position(age_s)
        start = int(position)
        low = curve[start]
        return low + (curve[start + 1] - low) * (position - start)

    def _curve(self, request: RequestMemory, touches: int) -> array.array[float]:
        """The index at each bin's start; the last one twice, for interpolation at the end."""
        net = self._net.log_hazards(request, touches)
        rates = self._rates.log_hazards(request, touches)
        hazards = np.exp(NET_SHARE * net + (1.0 - NET_SHARE) * rates)
        index = reuse_index(np.minimum(hazards, HAZARD_MAX)[None, :])[0]
        return array.array("f", [*index, index[-1]])
