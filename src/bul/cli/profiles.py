"""A replica's profile by name or file, for the commands that simulate."""

from __future__ import annotations

import pathlib
import tomllib
import typing
from collections.abc import Mapping

if typing.TYPE_CHECKING:
    from bul.simulator.replica import ReplicaProfile

__all__ = ["profile_named"]


def profile_named(name: str) -> ReplicaProfile:
    """embedded, 8b, 70b, or a JSON or TOML file of its fields. Raises ConfigError."""
    from bul.errors import ConfigError
    from bul.simulator.replica import PROFILES, profile_of

    if name in PROFILES:
        return PROFILES[name]
    path = pathlib.Path(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8")) if path.suffix == ".toml" else None
        return profile_of(_json(path) if values is None else values, path.stem)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        known = ", ".join(PROFILES)
        raise ConfigError(f"profile {name}: {error}", hint=f"known: {known}") from error


def _json(path: pathlib.Path) -> Mapping[str, object]:
    import msgspec

    from bul.errors import ConfigError

    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except msgspec.DecodeError as error:
        raise ConfigError(f"profile {path}: {error}") from error
