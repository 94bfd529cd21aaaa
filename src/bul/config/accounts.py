"""`[accounts]`: where keys and usage are kept.

Refuses values out of range with a message that names the field and the legal range.
"""

from __future__ import annotations

import dataclasses

from bul.config.checks import in_range

__all__ = ["AccountsConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AccountsConfig:
    """`[accounts]`: the database of API keys, usage, decisions and replica-hours.

    database_url: sqlite:////FILE or postgresql://USER:PASSWORD@HOST/NAME; "" for none: keys are
    those of bul.toml and nothing is billed. interval_s: between two writes of usage, and between
    two looks at the keys; a revoked key works for so long at most. keep_days: older decisions and
    replica-hours are removed; 0 keeps all. Usage stays.
    """

    database_url: str = ""
    interval_s: float = 1.0
    keep_days: float = 400.0

    def __post_init__(self) -> None:
        in_range("interval_s", self.interval_s, 0.01, 3600)
        in_range("keep_days", self.keep_days, 0, 36_500)
