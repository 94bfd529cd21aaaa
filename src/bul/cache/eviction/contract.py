"""The eviction contract: a policy owns the tree of resident keys and says which leaf goes next.

The same object decides in the engine (32-byte keys), in the replay and in the simulator (integer
ids). It holds no payloads, does no I/O, reads no clock, and its randomness comes from a seed.

Rules that every policy keeps (the replay's reference rules):
- the resident set is prefix-closed: a block with a resident child is never evicted;
- a held block is never evicted, nor any of its ancestors (they have a resident child);
- the blocks of the request that is being admitted compete too (a policy may not admit them).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

__all__ = ["Access", "EvictionPolicy"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """One request, as much as is known when it is admitted.

    path: keys of its full blocks, root first. now_s: seconds, any origin, never backwards.
    output_tokens: as far as known (0 while unknown). block_tokens: tokens of one block, so that
    depth means recompute cost. tenant, session: "" when unknown. touched: an earlier access of this
    very request has touched path[:touched] (it stores its blocks in several calls): no second use.
    speculative: nobody asked for the path; what is missing of it is inserted, without a use, as far
    as there is room, and nothing leaves for it.
    """

    path: Sequence[Hashable]
    now_s: float
    output_tokens: int = 0
    block_tokens: int = 64
    tenant: str = ""
    session: str = ""
    touched: int = 0
    speculative: bool = False


class EvictionPolicy(Protocol):
    """Which leaf goes next. `capacity` counts blocks and is at least 1."""

    @property
    def name(self) -> str: ...

    @property
    def capacity(self) -> int: ...

    def __len__(self) -> int:
        """Resident blocks; never above `capacity` after `access` and `resize`, but for held blocks
        (and their ancestors) that cannot go: they leave in the first `access` that may take them.
        """
        ...

    def __contains__(self, key: Hashable) -> bool: ...

    def match(self, path: Sequence[Hashable]) -> int:
        """Length of the longest resident prefix of `path`. Does not modify the policy."""
        ...

    def access(self, access: Access) -> list[Hashable]:
        """Touch the resident prefix of the path and insert the rest; return the keys that left.

        A key of the path itself may be among them: then it was not admitted, or was resident and
        lost to others. Afterwards the resident part of the path is again a prefix of it.
        """
        ...

    def finish(self, path: Sequence[Hashable], output_tokens: int) -> None:
        """The request over `path` ended after `output_tokens`: what `access` could not know yet.

        Optional: a request that is never finished counts as one of unknown length.
        """
        ...

    def learn_with(self, submit: Callable[[Callable[[], None]], None]) -> None:
        """Hand lessons that take milliseconds to `submit` instead of running them in `access`.

        They run one after the other, perhaps in another thread, or not at all. Without this call
        they run at once, which is what a repeatable replay wants.
        """
        ...

    def hold(self, key: Hashable) -> None:
        """A resident key is in use: it must not leave until as many `unhold`s came."""
        ...

    def unhold(self, key: Hashable) -> None: ...

    def remove(self, key: Hashable) -> list[Hashable]:
        """Take a key and all its resident descendants out (delete, damage); returns them."""
        ...

    def resize(self, capacity: int) -> list[Hashable]:
        """Change the capacity; returns the keys that left."""
        ...
