"""Writes requirements.txt and requirements-dev.txt from what is installed: `make pins`.

Follows the dependencies of pyproject.toml; refuses to pin what nothing asks for.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = "# Made by `make pins`; exact versions, wheels only. What each is for: pyproject.toml.\n"
PLATFORM_PINS = ("async-timeout", "cyllama")
"""Pinned per Python version in pyproject.toml already: copied from there."""


def closure(requirements: Iterable[str]) -> set[str]:
    """Canonical names of everything that `requirements` need here, themselves included."""
    found: set[str] = set()
    waiting = [(Requirement(text), frozenset[str]()) for text in requirements]
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")
        ):
            continue
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        found.add(name)
        needs = importlib.metadata.requires(name) or []
        waiting += [(Requirement(text), frozenset(requirement.extras)) for text in needs]
    return found


def lines(names: Iterable[str], declared: Iterable[str]) -> list[str]:
    """One pin a line; names in PLATFORM_PINS as pyproject.toml declares them."""
    pinned = []
    for name in sorted(names):
        if name in PLATFORM_PINS:
            pinned += [text for text in declared if Requirement(text).name == name]
        else:
            pinned.append(f"{name}=={importlib.metadata.version(name)}")
    return pinned


def main() -> None:
    root = Path(__file__).parent.parent
    document = tomllib.loads((root / "pyproject.toml").read_text())
    declared = document["project"]["dependencies"] + document["build-system"]["requires"]
    extra = document["project"]["optional-dependencies"]["dev"]
    # Not needed by this Python is not the same as not needed: those always have their lines.
    run = closure(declared) | set(PLATFORM_PINS)
    dev = closure(extra) - run
    for file, names in (("requirements.txt", run), ("requirements-dev.txt", dev)):
        (root / file).write_text(HEADER + "\n".join(lines(names, declared)) + "\n")
        print(f"{file}: {len(names)} packages")


if __name__ == "__main__":
    main()
