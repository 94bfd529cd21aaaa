"""How a replica's C library keeps the memory of KV blocks: in one heap for all its threads.

It refuses to overrule a GLIBC_TUNABLES that is already there. Other C libraries ignore the
variable. Reasons and figures: docs/decisions/0012-one-heap-for-blocks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["TUNABLES", "VARIABLE", "with_one_heap"]

VARIABLE: Final = "GLIBC_TUNABLES"
TUNABLES: Final = "glibc.malloc.arena_max=1"


def with_one_heap(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, with the tunables unless it has some."""
    return {VARIABLE: TUNABLES, **environ}
