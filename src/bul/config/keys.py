"""`[keys]` of `bul.toml`: who may come in, and how much of the service each one gets.

    [keys]
    alice = "SHA-256 of her key, 64 hex digits"
    bob = { sha256 = "...", requests_per_minute = 60, tokens_per_minute = 20000 }
    nightly = { tokens_per_minute = 500000, priority = "batch", share = 0.5 }

The last one has its hash elsewhere (the accounts' database). Refuses the key itself in the file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from bul.config.checks import in_range, one_of, whole
from bul.errors import ConfigError

__all__ = ["KEY_NAME", "PRIORITIES", "KeyLimits", "read_keys"]

PRIORITIES = ("interactive", "batch", "prefetch")
"""The best first."""
SHA256_HEX = re.compile(r"[0-9a-f]{64}")
KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HASH_FIELD = "sha256"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KeyLimits:
    """Of one key. 0 requests or tokens a minute: no limit. Tokens are of prompts and answers.

    priority: the best that its requests may have. share: of a crowded region, beside other keys.
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    priority: str = PRIORITIES[0]
    share: float = 1.0

    def __post_init__(self) -> None:
        whole("requests_per_minute", self.requests_per_minute, 0, 1 << 40)
        whole("tokens_per_minute", self.tokens_per_minute, 0, 1 << 50)
        one_of("priority", self.priority, PRIORITIES)
        in_range("share", self.share, 0.001, 1000)


def read_keys(table: object, source: str) -> tuple[Mapping[str, str], Mapping[str, KeyLimits]]:
    """Name -> hash, and name -> limits of those that have any. Raises ConfigError."""
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: keys must be a section, [keys]")
    hashes: dict[str, str] = {}
    limits: dict[str, KeyLimits] = {}
    for name, given in table.items():
        if not KEY_NAME.fullmatch(name):
            raise ConfigError(f"{source}: key name {name!r} may hold letters, digits, . _ -")
        digest, more = _parts(given)
        if digest is not None:
            if not isinstance(digest, str) or not SHA256_HEX.fullmatch(digest):
                hint = "make one with `bul keys create`; the key itself never belongs in the file"
                raise ConfigError(f"{source}: [keys] {name} must be 64 hex digits", hint=hint)
            hashes[name] = digest
        if more:
            limits[name] = _limits(name, more, source)
    return hashes, limits


def _parts(given: object) -> tuple[object, dict[str, Any]]:
    if not isinstance(given, dict):
        return given, {}
    more = dict(given)
    return more.pop(HASH_FIELD, None), more


def _limits(name: str, given: dict[str, Any], source: str) -> KeyLimits:
    known = [field.name for field in dataclasses.fields(KeyLimits)]
    unknown = sorted(given.keys() - set(known))
    if unknown:
        listed = ", ".join((HASH_FIELD, *known))
        raise ConfigError(f"{source}: [keys] {name} has {unknown[0]!r}; known are {listed}")
    try:
        return KeyLimits(**given)
    except ConfigError as error:
        raise ConfigError(f"{source}: [keys] {name}: {error}") from error
