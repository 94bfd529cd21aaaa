"""What the adaptive policy remembers of a request, and how it describes it to its models.

It refuses the future: output tokens are unknown until the request has ended, and say so.
"""

from __future__ import annotations

import array
import math
import zlib

__all__ = ["FACTOR_SIZES", "GAP_CLASSES", "INPUTS", "TOUCH_CLASSES", "RequestMemory", "touch_class"]

UNKNOWN = -1
TURN_CLASSES, LENGTH_CLASSES, NEW_CLASSES, OUTPUT_CLASSES, GAP_CLASSES = 7, 12, 7, 5, 8
TENANT_CLASSES = 32
TOUCH_CLASSES = 5
INPUTS = 14

FACTOR_SIZES = (
    TURN_CLASSES,
    LENGTH_CLASSES,
    NEW_CLASSES,
    OUTPUT_CLASSES,
    TURN_CLASSES * OUTPUT_CLASSES,
    TURN_CLASSES * NEW_CLASSES,
    TENANT_CLASSES,
)
"""Values of each factor in `RequestMemory.factors`, in that order."""

_TOUCHES = (0, 0, 1, 2, 2, *(3,) * 12)


def touch_class(touches: int) -> int:
    """1, 2, 3-4, 5-16, 17 and more touches as 0..4."""
    return _TOUCHES[touches] if touches < len(_TOUCHES) else 4


class RequestMemory:
    """One request; `turn` counts from 0 in its conversation, gaps are 0.0 without an earlier turn.

    known: blocks of its path that were remembered when it came. residents: resident blocks whose
    last user it is. tail_touches: the touch class of the last block of its path. curves: the index
    by age for each touch class, while it has residents. shadow_blocks and shadow_depth belong to
    the guard: its blocks that LRU would hold, and how deep they reach.
    """

    __slots__ = (
        "at_s", "curves", "curves_number", "factors", "gap_class", "gap_mean_s", "gap_s", "inputs",
        "known", "length", "number", "output_tokens", "records", "residents", "shadow_blocks",
        "shadow_depth", "tail_touches", "tenant", "turn",
    )  # fmt: skip

    def __init__(self, number: int, at_s: float, length: int, tenant: str) -> None:
        self.number = number
        self.at_s = at_s
        self.length = length
        self.tenant = 1 + zlib.crc32(tenant.encode()) % (TENANT_CLASSES - 1) if tenant else 0
        self.turn = 0
        self.gap_s = self.gap_mean_s = 0.0
        self.known = 0
        self.output_tokens = UNKNOWN
        self.residents = self.shadow_blocks = 0
        self.shadow_depth = length
        self.tail_touches = 0
        self.records: list[int] = []
        self.curves: list[array.array[float] | None] | None = None
        self.curves_number = 0
        self.gap_class = 0
        self.inputs: list[float] = []
        self.factors: tuple[int, ...] = ()

    def follows(self, earlier: RequestMemory | None, known: int) -> None:
        """`earlier` is the last user of the last known block; decides whether this continues it.

        It does if what is known reaches the last two blocks of the earlier request: the very last
        may have been cut elsewhere by what the reply added.
        """
        self.known = known
        if earlier is not None and earlier.length >= 2 and known >= earlier.length - 1:
            self.turn = earlier.turn + 1
            self.gap_s = self.at_s - earlier.at_s
            self.gap_mean_s = (earlier.gap_mean_s * earlier.turn + self.gap_s) / self.turn
        self.describe()

    def describe(self) -> None:
        """Work out `factors` (for the rates) and `inputs` (for the net) anew."""
        new = self.length - self.known
        turn = _turn_class(self.turn)
        new_class = 0 if new <= 1 else min(NEW_CLASSES - 1, 1 + int(math.log2(new)))
        output = _output_class(self.output_tokens)
        length = int(math.log2(self.length) * 1.5) if self.length > 1 else 0
        factors = (
            turn,
            min(LENGTH_CLASSES - 1, length),
            new_class,
            output,
            turn * OUTPUT_CLASSES + output,
            turn * NEW_CLASSES + new_class,
            self.tenant,
        )
        self.factors = factors
        self.gap_class = _gap_class(self.gap_s) if self.turn else 0
        self.inputs = self._inputs(new)

    def _inputs(self, new: int) -> list[float]:
        """Scaled to about [-1, 2]; a missing value is 0 beside a flag that says so."""
        finished, later = self.output_tokens >= 0, self.turn > 0
        return [
            float(self.turn == 0),
            math.log2(1 + self.turn) / 2,
            math.log2(1 + self.length) / 3 - 1,
            math.log2(1 + new) / 2.5 - 0.5,
            float(new == 0),
            math.log2(1 + self.known) / 3 - 0.7,
            float(finished),
            math.log2(1 + self.output_tokens) / 3 - 2 if finished else 0.0,
            float(later),
            math.log2(1 + self.gap_s) / 3 - 1.5 if later else 0.0,
            math.log2(1 + self.gap_mean_s) / 3 - 1.5 if later else 0.0,
            float(self.known == 0),
            float(self.turn >= 3),
            float(finished and self.output_tokens < 32),
        ]


def _turn_class(turn: int) -> int:
    """0, 1, 2, 3-4, 5-8, 9-16, 17 and more as 0..6."""
    return turn if turn < 3 else min(TURN_CLASSES - 1, 2 + (turn - 1).bit_length() - 1)


def _output_class(tokens: int) -> int:
    """Under 32, 128, 512, more, unknown as 0..4."""
    if tokens < 0:
        return 4
    return 0 if tokens < 32 else 1 if tokens < 128 else 2 if tokens < 512 else 3


def _gap_class(gap_s: float) -> int:
    """Up to 5.7 s, then one class for each factor of 2.8, as 1..7."""
    if gap_s <= 2.0:
        return 1
    return 1 + min(GAP_CLASSES - 2, int(math.log2(gap_s / 2.0) / 1.5))
