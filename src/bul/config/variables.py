"""Variables that a library reads by itself, set before it is loaded.

Refuses to override: what the user has set stays.
"""

from __future__ import annotations

import os

__all__ = ["set_default_variable"]


def set_default_variable(name: str, value: str) -> None:
    """Set `name` for this process and the libraries that it loads from now on, unless it is set."""
    os.environ.setdefault(name, value)
