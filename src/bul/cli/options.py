"""Flags that are settings: `@setting("serve.port", "--port")` and `load(values)`.

Refuses to know types or defaults: both are the dataclass field's, so that a flag, its `BUL_*`
variable and its key in `bul.toml` can never disagree.

    @click.command()
    @setting("serve.port", "--port", help="0 asks the system for a free one.")
    def command(**values: object) -> None:
        settings = load(values)
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from bul.config import Origin, Settings, field_type, load_settings

__all__ = ["load", "setting"]

SEPARATOR = "__"
Decorator = Callable[[Callable[..., typing.Any]], Callable[..., typing.Any]]


def setting(key: str, *names: str, help: str = "") -> Decorator:  # noqa: A002 - click's own word
    """A click option for the setting "section.field"; left out, it changes nothing.

    A boolean becomes --name/--no-name; a list may be given several times; the rest are text
    that the settings convert and check.
    """
    kind = field_type(key)
    parameter = key.replace(".", SEPARATOR)
    variable = "BUL_" + key.replace(".", "_").upper()
    text = f"{help}  [{key}, {variable}]".strip()
    if kind is bool:
        flag = names[-1].removeprefix("--")
        return click.option(f"--{flag}/--no-{flag}", parameter, default=None, help=text)
    if typing.get_origin(kind) is tuple:
        return click.option(*names, parameter, multiple=True, default=None, help=text)
    return click.option(*names, parameter, default=None, metavar=_metavar(kind), help=text)


def load(values: Mapping[str, object]) -> Settings:
    """The effective settings from a command's parameters; others than `setting`s are ignored."""
    context = click.get_current_context()
    names = {option.name: option.opts[-1] for option in context.command.params}
    flags: dict[str, tuple[Origin, object]] = {}
    for parameter, value in values.items():
        if SEPARATOR in parameter and value is not None and value != ():
            key = parameter.replace(SEPARATOR, ".", 1)
            flags[key] = (names.get(parameter, parameter), value)
    return load_settings(_config_path(context), flags=flags)


def _config_path(context: click.Context) -> Path | None:
    path = context.find_root().obj
    return Path(path) if path else None


def _metavar(kind: typing.Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(typing.get_args(kind))
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "TEXT")
