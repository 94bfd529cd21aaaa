"""Folders that follow the user's environment rather than a setting.

Refuses to create anything: the one who writes does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bul.config.load import environment

__all__ = ["cache_dir"]


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CACHE_HOME/bul`, else `~/.cache/bul`; a relative XDG value counts as unset.

    environ: None is the process's own.
    """
    environ = environment() if environ is None else environ
    base = environ.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "bul"
    home = environ.get("HOME", "")
    return (Path(home) if home else Path.home()) / ".cache" / "bul"
