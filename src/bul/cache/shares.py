"""Tenants' shares of the RAM: whoever is over `share_max` of the blocks gives up its own oldest.

It refuses to judge between tenants (the eviction policy does) and to take what is held. Off when
`share_max` is 1.0, and costs nothing then.

Per tenant there is a list of tips (the ends of its requests' paths) in order of last use. Over its
share, a tenant loses blocks from its oldest tip towards the root, up to a block that other tips
share. Blocks belong to the tenant that set them first; tenants do not share chains unless
configured to, since their salts are in the keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from bul.cache.resident import Resident

__all__ = ["TenantShares"]


class TenantShares:
    """Watches `resident.on_use`; no lock of its own."""

    def __init__(self, resident: Resident, share_max: float) -> None:
        self._resident = resident
        self._share_max = share_max
        self._tips: dict[str, OrderedDict[bytes, None]] = {}
        self.trimmed_total = 0
        if share_max < 1.0:
            resident.on_use = self.used

    def used(self, path: Sequence[bytes], tenant: str) -> None:
        """A request of `tenant` used or stored `path`: bring the tenant back within its share."""
        resident = self._resident
        tips = self._tips.setdefault(tenant, OrderedDict())
        length = len(path)
        while length and path[length - 1] not in resident.entries:
            length -= 1
        for key in path[:length]:  # the ancestors are no tips any more
            tips.pop(key, None)
        if length:
            tips[path[length - 1]] = None
        limit = max(1, int(self._share_max * resident.capacity_blocks))
        while resident.tenant_blocks.get(tenant, 0) > limit and tips:
            self._trim(tips, resident.tenant_blocks.get(tenant, 0) - limit)
        if not tips:
            del self._tips[tenant]

    def _trim(self, tips: OrderedDict[bytes, None], excess: int) -> None:
        """Take up to `excess` blocks from the oldest tip upwards; forget the tip."""
        key, _ = tips.popitem(last=False)
        entries = self._resident.entries
        while excess > 0:
            entry = entries.get(key)
            if entry is None or entry.children or entry.holds:
                return
            parent = entry.parent
            self.trimmed_total += self._resident.evict(key)
            excess -= 1
            key = parent
        parent_entry = entries.get(key)
        if parent_entry is not None and not parent_entry.children:
            tips[key] = None
            tips.move_to_end(key, last=False)
