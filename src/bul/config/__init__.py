"""Frozen settings, and the one place that reads configuration files and the environment.

Open `sections.py` first: one dataclass per section of `bul.toml`; `load.py` reads them.
"""

from bul.config.accounts import AccountsConfig
from bul.config.keys import KEY_NAME, PRIORITIES, KeyLimits
from bul.config.load import (
    Origin,
    Settings,
    child_environment,
    environment,
    field_type,
    is_secret,
    load_settings,
)
from bul.config.regions import RegionsConfig
from bul.config.scale import SCENARIOS, ScaleConfig
from bul.config.sections import (
    EVICTION_POLICIES,
    KVCacheConfig,
    RouteConfig,
    ServeConfig,
    TimedConfig,
    UpConfig,
)
from bul.config.tracing import TracingConfig

__all__ = [
    "EVICTION_POLICIES",
    "KEY_NAME",
    "PRIORITIES",
    "SCENARIOS",
    "AccountsConfig",
    "KVCacheConfig",
    "KeyLimits",
    "Origin",
    "RegionsConfig",
    "RouteConfig",
    "ScaleConfig",
    "ServeConfig",
    "Settings",
    "TimedConfig",
    "TracingConfig",
    "UpConfig",
    "child_environment",
    "environment",
    "field_type",
    "is_secret",
    "load_settings",
]
