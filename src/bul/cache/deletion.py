"""Deleting one prompt's blocks: from RAM at once, from each slower tier behind its queued writes.

Refuses to say "gone" of what it did not look at again: a tier that does not answer is None. Other
processes keep what lies in their own RAM; whoever wants it gone everywhere asks each of them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Mapping, Sequence

from bul.cache.lane import Lane
from bul.cache.resident import Resident
from bul.errors import TierUnavailable

__all__ = ["delete_blocks"]


def delete_blocks(
    keys: Sequence[bytes], resident: Resident, lanes: Sequence[Lane], lock: threading.Lock
) -> Mapping[str, int | None]:
    """How many of `keys` are left in each tier. Waits for the slowest one, a deadline at most."""
    _forget(keys, resident, lock)
    removals = [(lane, lane.remove(tuple(keys))) for lane in lanes]
    end_s = time.monotonic() + max((lane.deadline_s for lane in lanes), default=0.0)
    left: dict[str, int | None] = {}
    for lane, done in removals:
        with contextlib.suppress(concurrent.futures.TimeoutError):
            done.result(max(0.0, end_s - time.monotonic()))
        left[lane.tier.name] = _left(lane, keys) if done.done() else None
    _forget(keys, resident, lock)  # a load under way may have brought some back
    with lock:
        return {"ram": sum(key in resident.entries for key in keys), **left}


def _forget(keys: Sequence[bytes], resident: Resident, lock: threading.Lock) -> None:
    with lock:
        for key in keys:
            if key in resident.entries:  # a parent takes its descendants with it
                resident.remove(key)


def _left(lane: Lane, keys: Sequence[bytes]) -> int | None:
    """None for a tier that fails or is shut off."""
    try:
        return lane.call("match", lambda: sum(lane.tier.match([key]) for key in keys))
    except TierUnavailable:
        return None
