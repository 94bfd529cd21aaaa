"""A small net that learns hazards of reuse by age, for what rates and multipliers cannot say.

It refuses to be large or unseeded: INPUTS + TOUCH_CLASSES inputs, HIDDEN tanh units, AGE_BINS
outputs, about 1,500 numbers, trained a mini-batch at a time on the log's records.

An output z_b is the log of the hazard of bin b. The loss of a record that ends in bin b is the
negative log likelihood of a discrete survival model: -log(1 - h_k) for every bin k < b that it
survived, and -log h_b if it was reused (M. Gensheimer and B. Narasimhan, "A scalable discrete-time
survival model for neural networks", PeerJ 2019). Steps are Adam (D. Kingma and J. Ba, 2015).
It starts as a constant hazard, for which the policy is about LRU.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bul.cache.eviction.adaptive_ages import AGE_BINS, Floats, Ints
from bul.cache.eviction.adaptive_log import Observations
from bul.cache.eviction.adaptive_request import INPUTS, TOUCH_CLASSES, Described

__all__ = ["ReuseNet"]

Array32 = npt.NDArray[np.float32]

HIDDEN = 24
HAZARD_START = 0.02
LOG_HAZARD_MAX = -0.05
LEARNING_RATE = 0.005
LEARNING_RATE_FLOOR = 0.2
LEARNING_STEPS_HALF = 1000.0
WEIGHT_DECAY = 1e-4
MOMENTUM, VARIANCE = 0.9, 0.99
AVERAGE_KEPT = 0.98
AVERAGE_STEPS_MIN = 10

_BINS = np.arange(AGE_BINS)


class ReuseNet:
    """Two layers, their gradients and Adam's two moments."""

    def __init__(self, random: np.random.Generator) -> None:
        inputs = INPUTS + TOUCH_CLASSES
        first = random.standard_normal((inputs, HIDDEN)) / math.sqrt(INPUTS)
        self._weights: list[Array32] = [
            first.astype(np.float32),
            np.zeros(HIDDEN, np.float32),
            np.zeros((HIDDEN, AGE_BINS), np.float32),
            np.full(AGE_BINS, math.log(HAZARD_START), np.float32),
        ]
        self._means = [np.zeros_like(weights) for weights in self._weights]
        self._squares = [np.zeros_like(weights) for weights in self._weights]
        self._averages = [weights.copy() for weights in self._weights]
        self._steps = 0

    def log_hazards(self, described: Described, touches: Ints) -> Floats:
        """Logarithm of P(reuse in the bin | not before) of blocks, [n, AGE_BINS].

        Block i is of touch class `touches[i]` and of the request in row i of `described`.
        """
        first, first_bias, second, second_bias = self._averages
        hidden = np.tanh(described.inputs @ first[:INPUTS] + first[INPUTS + touches] + first_bias)
        outputs: Floats = np.minimum(hidden @ second + second_bias, LOG_HAZARD_MAX)
        return outputs.astype(np.float64)

    def fit(self, seen: Observations) -> None:
        """One step of gradient descent on a mini-batch."""
        first, first_bias, second, second_bias = self._weights
        hidden = np.tanh(seen.inputs @ first + first_bias)
        outputs = hidden @ second + second_bias
        slopes = _loss_slopes(outputs, seen) / np.float32(len(seen.bins))
        hidden_slopes = (slopes @ second.T) * (1.0 - hidden * hidden)
        self._descend(
            [
                seen.inputs.T @ hidden_slopes + WEIGHT_DECAY * first,
                hidden_slopes.sum(axis=0),
                hidden.T @ slopes + WEIGHT_DECAY * second,
                slopes.sum(axis=0),
            ]
        )

    def _descend(self, gradients: list[Array32]) -> None:
        self._steps += 1
        slowed = max(LEARNING_RATE_FLOOR, 1.0 / math.sqrt(1.0 + self._steps / LEARNING_STEPS_HALF))
        rate = LEARNING_RATE * slowed / (1.0 - MOMENTUM**self._steps)
        kept = min(AVERAGE_KEPT, self._steps / (self._steps + AVERAGE_STEPS_MIN))
        unbias = 1.0 / (1.0 - VARIANCE**self._steps)
        for number, gradient in enumerate(gradients):
            mean, square = self._means[number], self._squares[number]
            np.add(mean, (1.0 - MOMENTUM) * (gradient - mean), out=mean)
            np.add(square, (1.0 - VARIANCE) * (gradient * gradient - square), out=square)
            step = rate * mean / (np.sqrt(square * unbias) + 1e-8)
            weights, average = self._weights[number], self._averages[number]
            np.subtract(weights, step.astype(np.float32), out=weights)
            np.add(average, (1.0 - kept) * (weights - average), out=average)


def _loss_slopes(outputs: Array32, seen: Observations) -> Array32:
    """Derivatives of the loss by the outputs, [n, AGE_BINS]."""
    hazards = np.exp(np.minimum(outputs, LOG_HAZARD_MAX))
    survived = seen.bins[:, None] > _BINS
    slopes: Array32 = np.where(survived, hazards / (1.0 - hazards), np.float32(0.0))
    rows = np.flatnonzero(seen.reused)
    slopes[rows, seen.bins[rows]] -= 1.0
    # At the ceiling a further push upwards would only wind the output up.
    slopes[(outputs >= LOG_HAZARD_MAX) & (slopes < 0.0)] = 0.0
    return slopes
