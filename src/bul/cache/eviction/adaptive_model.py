"""What the adaptive policy believes: two models of reuse, averaged, turned into an index by age.

It refuses to learn more often than LEARN_REQUESTS, FIT_EVERY_S and STEPS_PER_S_MAX allow, so that a
flood of requests does not become a flood of training; and it refuses to compute in front of one.

The two are averaged in the logarithm of the hazard: the rates are right early and never far off,
the net finds what factors mean together. In a prototype, on the four traces that the constants were
chosen on, at 5 % of their footprint, the rates alone gained up to 1.9 points of token hit ratio on
LRU, the net alone up to 1.8, both 2.1 to 2.3.

Who does what. A request's thread notes what happened, asks for curves (`want`) and reads curves
(`worths`). All else is `learn`: notes into the log, weights, curves. It runs where `submit` puts
it: at once in a replay, in a thread of its own in the engine. The models are `learn`'s own; a
request reads one thing of it, `RequestMemory.curves`, a `bytes` that never changes and is replaced
whole. While a curve is not there yet, that of the last request of the same kind serves.
"""

from __future__ import annotations

import collections
import math
import struct
from collections.abc import Callable, Sequence
from math import log2
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bul.cache.eviction.adaptive_ages import AGE_BINS, AGE_FIRST_S, reuse_index
from bul.cache.eviction.adaptive_log import ReuseLog
from bul.cache.eviction.adaptive_net import ReuseNet
from bul.cache.eviction.adaptive_rates import ReuseRates
from bul.cache.eviction.adaptive_request import TOUCH_CLASSES, RequestMemory, describe, touch_class

__all__ = ["ReuseModel"]

LEARN_REQUESTS = 64
"""The rates are fitted every so many requests; before the first fit there is no opinion."""
FIT_EVERY_S = 1.0
BATCH_RECORDS = 256
STEPS_PER_REQUEST = 0.5
STEPS_PER_S_MAX = 20.0
STEPS_SAVED_MAX = 64.0
"""Steps that a quiet time may save up for a burst, and the first steps of a new net."""
CURVE_REQUESTS_MAX = 32
RENEWALS_PER_REQUEST = 8
"""A curve is worked out again when it was needed and so many requests old, but not too many of them
at once: among a million blocks nearly every curve that is looked at is old."""
WANTED_MAX = 1024
CURVES_AT_ONCE = 32
NET_SHARE = 0.5
HAZARD_MAX = 0.95

_EVERY_CLASS = (1 << TOUCH_CLASSES) - 1
_CLASSES = tuple(
    tuple(c for c in range(TOUCH_CLASSES) if mask >> c & 1) for mask in range(_EVERY_CLASS + 1)
)
_POINTS = AGE_BINS + 1
_OFFSETS = tuple(
    tuple(1 + 4 * _POINTS * mine.index(c) if c in mine else 0 for c in range(TOUCH_CLASSES))
    for mine in _CLASSES
)
"""Where in `RequestMemory.curves` the curve of a touch class begins, by its first byte, the classes
that it has as bits; 0 for a class that it has not."""
_two_points = struct.Struct("=ff").unpack_from
_AGE_FIRST_TWICE = 2.0 * math.log2(AGE_FIRST_S)
_LAST_POSITION = AGE_BINS - 1.0
_KINDS = 3


def _at_once(lesson: Callable[[], None]) -> None:
    lesson()


class Judged(Protocol):
    """A block: who used it last, its touches, its depth."""

    @property
    def last(self) -> RequestMemory: ...

    @property
    def count(self) -> int: ...

    @property
    def stamp(self) -> int: ...


class ReuseModel:
    """Learns from the log; answers with an index."""

    def __init__(self, seed: int) -> None:
        self.log = ReuseLog()
        self.ready = False  # once a fit is done, not once it was asked for
        self.submit: Callable[[Callable[[], None]], None] = _at_once
        self._requests = 0
        self._now_s = 0.0
        self._renewals = 0
        self._wanted: collections.deque[RequestMemory] = collections.deque()
        self._typical = [[b""] * _KINDS for _ in range(TOUCH_CLASSES)]
        # `learn`'s own
        self._random = np.random.default_rng(seed)
        self._rates = ReuseRates()
        self._net = ReuseNet(self._random)
        self._learned_requests = self._fitted_requests = 0
        self._learned_s = 0.0
        self._fitted_s = -math.inf
        self._steps_wanted = 0.0
        self._steps_allowed = STEPS_SAVED_MAX

    # a request's thread

    def arrived(self, request: RequestMemory, now_s: float) -> None:
        """`request` came and its blocks are in the log: learn, if it is time, and its curves."""
        self._requests += 1
        self._now_s = now_s
        self._renewals = RENEWALS_PER_REQUEST
        self.want(request)
        self.submit(self.learn)

    def ended(self, request: RequestMemory, output_tokens: int) -> None:
        """The request's output is known now; its new curves come with the next request's."""
        request.output_tokens = output_tokens
        self.log.ended(request)
        if request.residents:
            self.want(request)

    def want(self, request: RequestMemory) -> None:
        """Have its curves worked out (anew) soon, unless too many are waited for."""
        if self.ready and not request.wanted and len(self._wanted) < WANTED_MAX:
            request.wanted = True
            self._wanted.append(request)

    def worths(
        self, blocks: Sequence[Judged], now_s: float, weights: Sequence[float]
    ) -> list[float]:
        """Expected hits per second of room of each block, times its depth's weight."""
        oldest = self._requests - CURVE_REQUESTS_MAX
        found = []
        for block in blocks:  # the hottest loop of the policy: nothing in it is called twice
            request, count = block.last, block.count
            if request.curves_number < oldest and self._renewals > 0:
                self._renewals -= 1
                self.want(request)
            touches = touch_class(count)
            curves = request.curves
            offset = _OFFSETS[curves[0]][touches] if curves else 0
            if not offset:
                curves, offset = self._typical[touches][min(request.turn, _KINDS - 1)], 1
            age_s = now_s - request.at_s
            start, rest = 0, 0.0
            if age_s > AGE_FIRST_S:
                position = min(2.0 * log2(age_s) - _AGE_FIRST_TWICE, _LAST_POSITION)
                start = int(position)
                rest = position - start
            low, high = _two_points(curves, offset + 4 * start)
            found.append((low + (high - low) * rest) * weights[block.stamp])
        return found

    # wherever `submit` runs it

    def learn(self) -> None:
        """Do what is due: the rates, some steps of the net, the curves that are wanted."""
        requests, now_s = self._requests, self._now_s
        new = requests - self._learned_requests
        if new:
            self._learned_requests = requests
            self._learn(requests, new, now_s)
        while self._wanted:
            few = min(len(self._wanted), CURVES_AT_ONCE)
            wanted = [self._wanted.popleft() for _ in range(few)]
            for request in wanted:
                request.wanted = False
            kept = [request for request in wanted if request.residents]
            if kept:
                self._draw(kept)

    def _learn(self, requests: int, new: int, now_s: float) -> None:
        due = requests - self._fitted_requests >= LEARN_REQUESTS
        fit = due and now_s - self._fitted_s >= FIT_EVERY_S
        begun = self._fitted_requests > 0
        if begun:
            self._steps_wanted += STEPS_PER_REQUEST * new
        elif fit:
            self._steps_wanted = STEPS_SAVED_MAX
        self._steps_wanted = min(self._steps_wanted, STEPS_SAVED_MAX)
        earned = (now_s - self._learned_s) * STEPS_PER_S_MAX
        self._steps_allowed = min(self._steps_allowed + earned, STEPS_SAVED_MAX)
        self._learned_s = now_s
        steps = int(min(self._steps_wanted, self._steps_allowed))
        self._steps_wanted -= steps
        self._steps_allowed -= steps
        if fit or steps:
            self.log.catch_up()
        if fit:
            self._fitted_requests, self._fitted_s = requests, now_s
            self._rates.fit(self.log.observe(now_s, slice(0, len(self.log))))
        for _ in range(steps):
            chosen = self._random.integers(0, len(self.log), BATCH_RECORDS)
            self._net.fit(self.log.observe(now_s, chosen))
        if fit and not self.ready:
            self._begin()

    def _begin(self) -> None:
        """A curve for each kind of block, for requests that have none of their own yet."""
        for kind in range(_KINDS):
            stranger = RequestMemory(0, 0.0, 1, turn=kind, touches=_EVERY_CLASS)
            self._draw([stranger])
        self.ready = True

    def _draw(self, requests: Sequence[RequestMemory]) -> None:
        """Work out the curves of `requests`; each gets all of its own at once."""
        number = self._requests
        rows: list[int] = []
        touches: list[int] = []
        masks = [request.touches for request in requests]
        for row, mask in enumerate(masks):
            rows += [row] * len(_CLASSES[mask])
            touches += _CLASSES[mask]
        drawn = self._curves(requests, rows, np.array(touches, np.int64))
        begin = 0
        for request, mask in zip(requests, masks, strict=True):
            end = begin + len(_CLASSES[mask])
            request.curves = bytes((mask,)) + drawn[begin:end].tobytes()
            request.curves_number = number
            kind = min(request.turn, _KINDS - 1)
            for at in range(begin, end):
                self._typical[touches[at]][kind] = b"\0" + drawn[at].tobytes()
            begin = end

    def _curves(
        self, requests: Sequence[RequestMemory], rows: list[int], touches: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The index at each bin's start, the last one twice for interpolation, [n, _POINTS]."""
        described = describe(requests).rows(rows)
        net = self._net.log_hazards(described, touches)
        rates = self._rates.log_hazards(described, touches)
        hazards = np.exp(NET_SHARE * net + (1.0 - NET_SHARE) * rates)
        index = reuse_index(np.minimum(hazards, HAZARD_MAX))
        return np.concatenate((index, index[:, -1:]), axis=1)
