"""API keys: only their SHA-256 hashes are kept, and the tenant is the name of the key that matched.

Refuses to say why: a missing, malformed, doubled or wrong key is the same 401. Every hash is
compared, in constant time each, so that neither the position nor a common prefix can be timed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Literal

from bul.accounts.keys import KEY_CHARS_MAX
from bul.errors import ConfigError

__all__ = ["OPERATOR", "Gate", "check_bind", "tenant_salt"]

OPERATOR = "operator"
"""The key with this name may read /metrics and /signals, which add up all tenants."""

TenantClass = Literal["anonymous", "keyed", "operator"]

SALT_BYTES = 32


def tenant_salt(cache_secret: str, tenant: str, *, share: bool = False) -> bytes:
    """The salt of a tenant's block keys; equal in all replicas that share `cache_secret`.

    With `share`, all tenants have the same one and may use each other's blocks.
    """
    name = "" if share else tenant
    return hmac.digest(cache_secret.encode(), name.encode(), "sha256")


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """Who may come in. `hashes`: name -> SHA-256 in hex; empty means that nobody is asked."""

    hashes: Mapping[str, str]

    @property
    def open(self) -> bool:
        return not self.hashes

    def tenant_of(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """The tenant, "" at an open gate, None for 401. Reads the Authorization header alone."""
        if self.open:
            return ""
        given = [value for name, value in headers if name == b"authorization"]
        key = _bearer(given[0]) if len(given) == 1 else None
        if key is None:
            return None
        digest = hashlib.sha256(key).hexdigest()
        found: str | None = None
        for name, known in self.hashes.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def class_of(self, tenant: str) -> TenantClass:
        """The class under which a tenant's figures are counted: never its name."""
        if self.open:
            return "anonymous"
        return "operator" if tenant == OPERATOR else "keyed"

    def may_see_totals(self, tenant: str) -> bool:
        """Whether this tenant may read figures that add up all tenants: the operator, or a sole
        tenant, who has no others to spy on.
        """
        return self.open or tenant == OPERATOR or len(self.hashes) == 1


def _bearer(value: bytes) -> bytes | None:
    scheme, _, key = value.partition(b" ")
    if scheme.lower() != b"bearer" or not 0 < len(key) <= KEY_CHARS_MAX:
        return None
    return key


def check_bind(host: str, keys: Mapping[str, str]) -> None:
    """Raise ConfigError when `host` can be reached from other machines and no key is set."""
    if keys or _is_loopback(host):
        return
    raise ConfigError(
        f"host {host!r} can be reached from other machines, and no API key is set",
        hint="make one with `bul keys create NAME --toml` and put its line under [keys] in "
        "bul.toml, name a database in accounts.database_url, or bind to 127.0.0.1",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # another name may resolve to anything, also later
