"""What a setting may be, as checks that name the field and the legal range. Refuses NaN."""

from __future__ import annotations

import math
import re

from bul.errors import ConfigError

__all__ = ["header_name", "in_range", "one_of", "whole"]

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")


def in_range(name: str, value: float, low: float, high: float) -> None:
    """A finite number in [low, high]. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a number in [{low}, {high}], was {value!r}")
    if not low <= value <= high:
        raise ConfigError(f"{name} must be in [{low}, {high}], was {value}")


def whole(name: str, value: int, low: int, high: int) -> None:
    """A whole number in [low, high]. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number in [{low}, {high}], was {value!r}")
    in_range(name, value, low, high)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """One of `choices`. Raises ConfigError."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, was {value!r}")


def header_name(name: str, value: str) -> None:
    """The name of a header or a cookie (RFC 9110's token). Raises ConfigError."""
    if not HEADER_NAME.fullmatch(value):
        raise ConfigError(f"{name} must be a header's name, was {value!r}")
