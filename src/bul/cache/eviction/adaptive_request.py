"""What the adaptive policy remembers of a request, and how it describes many to its models at once.

It refuses the future: output tokens are unknown until the request has ended, and say so. It refuses
to hold anything that holds something else: the garbage collector need not look at it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "FACTOR_SIZES",
    "GAP_CLASSES",
    "INPUTS",
    "TOUCH_CLASSES",
    "Described",
    "RequestMemory",
    "describe",
    "tenant_class",
    "touch_class",
]

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
"""Values of each factor in `Described.factors`, in that order."""

_TOUCHES = (0, 0, 1, 2, 2, *(3,) * 12)
_TURN_EDGES = np.array([1, 2, 3, 5, 9, 17])
_OUTPUT_EDGES = np.array([32, 128, 512])

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def touch_class(touches: int) -> int:
    """1, 2, 3-4, 5-16, 17 and more touches as 0..4."""
    return _TOUCHES[touches] if touches < len(_TOUCHES) else 4


def tenant_class(tenant: str) -> int:
    """0 for no name, else 1..31."""
    return 1 + zlib.crc32(tenant.encode()) % (TENANT_CLASSES - 1) if tenant else 0


class RequestMemory(msgspec.Struct, gc=False, eq=False):
    """One request; `turn` counts from 0 in its conversation, gaps are 0.0 without an earlier turn.

    known: blocks of its path that were remembered when it came. residents: resident blocks whose
    last user it is. touches: bit c is set if its path had blocks of touch class c.
    curves: the index by age for each touch class (see `adaptive_model.py`), b"" until worked out;
    curves_number: how many requests had come then; wanted: they are to be worked out (anew).
    records: its rows in the log. shadow_blocks and shadow_depth belong to the guard: its blocks
    that LRU would hold, and how deep they reach.
    """

    number: int
    at_s: float
    length: int
    tenant: int = 0
    turn: int = 0
    gap_s: float = 0.0
    gap_mean_s: float = 0.0
    known: int = 0
    output_tokens: int = UNKNOWN
    residents: int = 0
    touches: int = 0
    curves: bytes = b""
    curves_number: int = 0
    wanted: bool = False
    records: tuple[int, ...] = ()
    shadow_blocks: int = 0
    shadow_depth: int = 0

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


@dataclasses.dataclass(frozen=True, slots=True)
class Described:
    """Some requests: `gaps` [n], `factors` [n, factors] (for the rates), `inputs` [n, INPUTS]."""

    gaps: Ints
    factors: Ints
    inputs: npt.NDArray[np.float32]

    def rows(self, chosen: Sequence[int]) -> Described:
        """Those of `chosen`, which may repeat."""
        at = np.array(chosen, np.int64)
        return Described(self.gaps[at], self.factors[at], self.inputs[at])


def describe(requests: Sequence[RequestMemory]) -> Described:
    """Describe them as they are now."""
    raw = np.array(
        [
            (r.turn, r.length, r.known, r.output_tokens, r.gap_s, r.gap_mean_s, r.tenant)
            for r in requests
        ],
        np.float64,
    ).T
    turn, length, known, output, gap_s, gap_mean_s = raw[:6]
    new = length - known
    # One call of log2 for all; 1 + x is exact, so that a power of two is in the upper class.
    logs = np.log2(
        np.stack(
            (1 + turn, 1 + length, 1 + new, 1 + known, 1 + np.maximum(output, 0), 1 + gap_s,
             1 + gap_mean_s, np.maximum(length, 1), np.maximum(new, 1), np.maximum(gap_s, 2) / 2)
        )
    )  # fmt: skip
    return Described(
        gaps=np.where(turn > 0, 1 + np.minimum(GAP_CLASSES - 2, (logs[9] / 1.5).astype(int)), 0),
        factors=_factors(raw, new, logs),
        inputs=_inputs(raw, new, logs),
    )


def _factors(raw: Floats, new: Floats, logs: Floats) -> Ints:
    """Classes: turn 0, 1, 2, 3-4, 5-8, 9-16, 17+; output under 32, 128, 512, more, unknown."""
    turn = np.searchsorted(_TURN_EDGES, raw[0], side="right")
    output = np.where(raw[3] < 0, 4, np.searchsorted(_OUTPUT_EDGES, raw[3], side="right"))
    new_class = np.where(new <= 1, 0, np.minimum(NEW_CLASSES - 1, 1 + logs[8].astype(int)))
    return np.stack(
        (
            turn,
            np.minimum(LENGTH_CLASSES - 1, (logs[7] * 1.5).astype(int)),
            new_class,
            output,
            turn * OUTPUT_CLASSES + output,
            turn * NEW_CLASSES + new_class,
            raw[6].astype(int),
        ),
        axis=1,
    )


def _inputs(raw: Floats, new: Floats, logs: Floats) -> npt.NDArray[np.float32]:
    """Scaled to about [-1, 2]; a missing value is 0 beside a flag that says so."""
    turn, known, output = raw[0], raw[2], raw[3]
    finished, later = output >= 0, turn > 0
    return np.stack(
        (
            turn == 0,
            logs[0] / 2,
            logs[1] / 3 - 1,
            logs[2] / 2.5 - 0.5,
            new == 0,
            logs[3] / 3 - 0.7,
            finished,
            np.where(finished, logs[4] / 3 - 2, 0.0),
            later,
            np.where(later, logs[5] / 3 - 1.5, 0.0),
            np.where(later, logs[6] / 3 - 1.5, 0.0),
            known == 0,
            turn >= 3,
            finished & (output < 32),
        ),
        axis=1,
    ).astype(np.float32)
