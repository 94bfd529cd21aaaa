"""Policies by name, and the guide's three scenarios as presets.

Refuses an unknown name or setting with the nearest known one, before anything runs.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from bul.errors import ConfigError
from bul.scaling.adaptive import Adaptive, AdaptiveState
from bul.scaling.bounds import Bounds
from bul.scaling.decide import Policy
from bul.scaling.rules import Fixed, Guide, Hpa, Keda, Kpa, Ray, RuleState

__all__ = ["POLICY_NAMES", "PRESETS", "Preset", "knob_of", "make_policy", "make_state"]

_POLICIES: Mapping[str, tuple[Callable[..., Policy[Any]], Callable[[], object], str]] = (
    MappingProxyType(
        {
            "adaptive": (Adaptive, AdaptiveState, "violation_max"),
            "guide": (Guide, RuleState, "scale_up_threshold"),
            "hpa": (Hpa, RuleState, "target"),
            "kpa": (Kpa, RuleState, "target"),
            "ray": (Ray, RuleState, "target"),
            "keda": (Keda, RuleState, "target"),
            "fixed": (Fixed, RuleState, "replicas"),
        }
    )
)
POLICY_NAMES = tuple(_POLICIES)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A scenario of the guide: limits, thresholds, cooldowns. Settings are those of `guide`."""

    min_replicas: int
    max_replicas: int
    settings: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "traffic-spikes": Preset(
            min_replicas=3, max_replicas=20, settings={"scale_up_threshold": 0.7}
        ),
        "constant-high": Preset(min_replicas=10, max_replicas=10, settings={}),
        "variable": Preset(
            min_replicas=2,
            max_replicas=15,
            settings={
                "scale_up_threshold": 0.75,
                "scale_down_threshold": 0.25,
                "scale_up_cooldown": 300.0,
                "scale_down_cooldown": 600.0,
            },
        ),
    }
)
"""The guide's scenarios 1 to 3; scenario 2 is a fixed fleet of ten."""


def make_policy(name: str, *, bounds: Bounds | None = None, **settings: object) -> Policy[Any]:
    """The policy `name` with `settings`, its defaults otherwise. Raises ConfigError."""
    kind, _, _ = _POLICIES[_known(name, POLICY_NAMES, "policy")]
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # all are dataclasses
    for setting in settings:
        _known(setting, fields, f"setting of policy {name}")
    return kind(bounds=bounds or Bounds(), **settings)


def make_state(name: str) -> object:
    """What the policy `name` remembers before its first tick."""
    return _POLICIES[_known(name, POLICY_NAMES, "policy")][1]()


def knob_of(name: str) -> str:
    """The one setting that is varied when policies are compared."""
    return _POLICIES[_known(name, POLICY_NAMES, "policy")][2]


def _known(name: str, names: Iterable[str], what: str) -> str:
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    raise ConfigError(f"unknown {what}: {name}", hint=hint)
