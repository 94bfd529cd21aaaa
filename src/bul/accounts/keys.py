"""API keys: how one is made, what is kept of it, and what its name may be.

Refuses to keep a key: only the SHA-256 of it is stored anywhere. A plain hash will do, since a key
is 256 random bits and not a password.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets

from bul.config import KEY_NAME
from bul.errors import ConfigError

__all__ = ["KEY_CHARS_MAX", "Key", "check_name", "hash_key", "make_key"]

KEY_CHARS_MAX = 512
KEY_PREFIX = "bul-"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What is kept of a key. Times: seconds since the epoch; revoked_s: None while it is valid."""

    name: str
    digest: str
    created_s: float
    revoked_s: float | None = None


def make_key() -> str:
    """A new key with 256 bits of randomness."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What is kept: 64 hex digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_name(name: str) -> str:
    """The name, which is also the tenant's. Raises ConfigError."""
    if not KEY_NAME.fullmatch(name):
        raise ConfigError(f"key name {name!r} may hold letters, digits, . _ - (64 at most)")
    return name
