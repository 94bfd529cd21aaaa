"""Writes the pages of docs/reference that the code itself can tell: `make reference`.

Refuses to be edited by hand: a test compares the pages with what this makes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import msgspec

from bul import errors
from bul.accounts.book import RegionBook
from bul.cli.main import root
from bul.cli.region_books import books_text
from bul.cli.tracing import HELP
from bul.cli.tracing import metrics_text as traces_text
from bul.config import RouteConfig, is_secret
from bul.config.load import SECTIONS
from bul.router.app import Router
from bul.router.pages import metrics_text
from bul.scaling.adaptive import Capacity
from bul.scaling.decision import Decision, Direction
from bul.scaling.exposition import ScalerMetrics
from bul.scaling.history import Record

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
WIDTH = 100
MADE = "<!-- Made by `make reference`; edit the code instead. -->"


def commands(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    """A heading and the help of each command, parents first."""
    context = click.Context(
        command, info_name=name, parent=parent, max_content_width=WIDTH, terminal_width=WIDTH
    )
    level = "##" if parent is None or parent.parent is None else "###"
    yield f"{level} `{context.command_path}`\n\n```\n{context.get_help().rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None, child
            yield from commands(found, child, context)


def cli_page() -> str:
    """docs/reference/cli.md."""
    parts = "\n".join(commands(root, "bul", None))
    return (
        f"# Command line\n\n{MADE}\n\nEach command has `--help` with an example. Exit codes: "
        "0 done, 1 the answer is no or it failed, 2 bad usage or a bad setting, 130 Ctrl-C.\n\n"
        f"{parts}"
    )


def config_page() -> str:
    """docs/reference/config.md."""
    parts = "\n".join(section(name, kind) for name, kind in SECTIONS.items())
    return (
        f"# Settings\n\n{MADE}\n\nRising order: defaults, `bul.toml` (or the file that "
        "`BUL_CONFIG` names), `BUL_SECTION_FIELD` in the environment, flags. An unknown key is an "
        "error that names the nearest known one; `bul config show` says what is in force and who "
        "said so.\n\n"
        f"{parts}"
    )


def section(name: str, kind: type) -> str:
    """One section: what its fields mean, then a table of them."""
    said = inspect.getdoc(kind) or ""
    hints = typing.get_type_hints(kind)
    rows = "\n".join(
        f"| `{field.name}` | {type_name(hints[field.name])} | {default(name, field)} |"
        for field in dataclasses.fields(kind)
    )
    return f"## `[{name}]`\n\n{said}\n\n| key | type | default |\n|---|---|---|\n{rows}\n"


def type_name(hint: object) -> str:
    """As a reader of TOML would say it."""
    if typing.get_origin(hint) is typing.Literal:
        return " \\| ".join(f"`{value!s}`" if value else '`""`' for value in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "list of text"
    names: Mapping[object, str] = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "true or false",
    }
    return names[hint]


def default(name: str, field: dataclasses.Field[typing.Any]) -> str:
    """As TOML; a secret has none to show."""
    if is_secret(f"{name}.{field.name}"):
        return "-"
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return f"`{msgspec.json.encode(value).decode()}`"


def errors_page() -> str:
    """docs/reference/errors.md."""
    tree = (inspect.getdoc(errors) or "").split("\n\n")[1]
    rows = "\n".join(
        f"| `{name}` | {(inspect.getdoc(getattr(errors, name)) or '').splitlines()[0]} |"
        for name in errors.__all__
    )
    return (
        f"# Errors\n\n{MADE}\n\nEvery error that BUL raises on purpose, and each carries the next "
        f"step as its `hint`.\n\n```\n{tree}\n```\n\n| error | when |\n|---|---|\n{rows}\n"
    )


def router_metrics_page() -> str:
    """docs/reference/router-metrics.md, from what a router and a scaler send."""
    decision = Decision(direction=Direction.HOLD, replicas=1, reason="")
    scaler = ScalerMetrics()
    scaler.add(Record(wall_s=0.0, policy="", decision=decision, replicas_before=1, acted=False))
    capacity = Capacity(prefill_tokens_per_s=1.0, output_tokens_per_s=1.0, slots=1)
    sent = metrics_text(Router(RouteConfig())) + scaler.text(capacity=capacity, cold_start_s=1.0)
    sent += books_text(RegionBook("").stats())
    sent += traces_text(dict.fromkeys(HELP, 0.0))
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", sent, re.MULTILINE))
    rows = "\n".join(
        f"| `{name}` | {kinds[name]} | {what} |"
        for name, what in re.findall(r"^# HELP (\w+) (.*)$", sent, re.MULTILINE)
    )
    return (
        f"# Metrics of a router and its scaler\n\n{MADE}\n\n`GET /metrics` of a router; with keys "
        "set it is for the operator's. `bul_router_replica_*` carry the label `replica`, a URL of "
        "the router's own list; `bul_scaler_*` are there when the region scales itself, and those "
        "of decisions carry `direction`; `bul_region_*` when `bul up` has a database; "
        "`bul_trace_*` when `[tracing]` is set. A replica's own are in [metrics](metrics.md).\n\n"
        f"| metric | type | what |\n|---|---|---|\n{rows}\n"
    )


def pages() -> Mapping[str, str]:
    """File name -> text."""
    return {
        "cli.md": cli_page(),
        "config.md": config_page(),
        "errors.md": errors_page(),
        "router-metrics.md": router_metrics_page(),
    }


def main() -> int:
    """Write the pages, or with --check say which are not what this would write."""
    check = sys.argv[1:] == ["--check"]
    wrong = 0
    for file, text in pages().items():
        path = FOLDER / file
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/reference/{file}")
        elif path.read_text(encoding="utf-8") != text:
            print(f"docs/reference/{file} is not what the code says: make reference")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
