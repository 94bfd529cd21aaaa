"""How a replica's C library keeps the memory of KV blocks: in one heap for all its threads.

It refuses to overrule a GLIBC_TUNABLES that is already there. Other C libraries ignore the
variable. Reasons and figures: docs/decisions/0012-one-heap-for-blocks.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final

__all__ = ["TUNABLES", "VARIABLE", "use_one_heap", "with_one_heap"]

VARIABLE: Final = "GLIBC_TUNABLES"
TUNABLES: Final = "glibc.malloc.arena_max=1"
M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h: the same setting for a process that runs already."""


def with_one_heap(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, with the tunables unless it has some."""
    return {VARIABLE: TUNABLES, **environ}


def use_one_heap(environ: Mapping[str, str]) -> bool:
    """Have the threads that this process starts from now on share its first heap.

    For a replica that nobody started with the tunables. False, and nothing is changed, if `environ`
    has some, or if the C library has no such setting.
    """
    if VARIABLE in environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_ARENA_MAX, 1) == 1
