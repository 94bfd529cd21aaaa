"""BUL: reuse KV correctly and fast, route to it, scale by it.

The scaling guide's public names can be imported from here; each is loaded when it is asked for, so
that `bul --help` stays fast. Open `docs/ARCHITECTURE.md` first; it follows one request through the
folders.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from bul.cache.engine import UltraAdaptiveKVCacheEngine
    from bul.config import KVCacheConfig
    from bul.metrics.snapshot import scaling_metrics
    from bul.regions.multi_region import MultiRegionCache
    from bul.scaling.loop import IntelligentAutoScaler
    from bul.scaling.rules import should_scale_up

__version__ = "0.1.0"

__all__ = [
    "IntelligentAutoScaler",
    "KVCacheConfig",
    "MultiRegionCache",
    "UltraAdaptiveKVCacheEngine",
    "__version__",
    "scaling_metrics",
    "should_scale_up",
]

_HOME = {
    "IntelligentAutoScaler": "bul.scaling.loop",
    "KVCacheConfig": "bul.config",
    "MultiRegionCache": "bul.regions.multi_region",
    "UltraAdaptiveKVCacheEngine": "bul.cache.engine",
    "scaling_metrics": "bul.metrics.snapshot",
    "should_scale_up": "bul.scaling.rules",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'bul' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
