"""The limits that no scaling policy may leave."""

from __future__ import annotations

import dataclasses

from bul.errors import ConfigError

__all__ = ["Bounds"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What no policy may leave. stale_s: the oldest signals that may still move anything."""

    min_replicas: int = 2
    max_replicas: int = 10
    stale_s: float = 60.0

    def __post_init__(self) -> None:
        if self.min_replicas < 1:
            raise ConfigError(f"min_replicas must be at least 1, was {self.min_replicas}")
        if self.max_replicas < self.min_replicas:
            raise ConfigError(
                f"max_replicas must be at least min_replicas={self.min_replicas}, "
                f"was {self.max_replicas}"
            )
