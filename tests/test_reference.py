"""Docs against the code, both ways: what is documented exists, and what exists is documented."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import click
import pytest

from bul.cli.main import root

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
CODE = re.compile(r"```.*?```|`[^`\n]+`|^    \S.*$", re.DOTALL | re.MULTILINE)
CALL = re.compile(r"(?:^|(?<!from)(?<!SETUSER)[\s`(|&;]|bin/)bul((?: [\w.:/=,{}~@%+<>$\"'|*-]+)+)")
FLAG = re.compile(r"^--[a-z][a-z-]*$")


@cache
def pages() -> Mapping[str, str]:
    """What `make reference` would write."""
    made: Mapping[str, str] = runpy.run_path(str(ROOT / "tools" / "reference.py"))["pages"]()
    return made


@pytest.mark.parametrize("name", ["cli.md", "config.md", "errors.md", "router-metrics.md"])
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == pages()[name], "make reference"


def documents() -> list[Path]:
    """All that is written by hand."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return [path for path in found if path.name not in pages()]


def calls() -> Iterator[tuple[str, list[str]]]:
    """(page, words behind `bul`) of every call in code."""
    for path in documents():
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for code in CODE.findall(text):
            for words in CALL.findall(code.split("#")[0] if "\n" not in code else code):
                yield path.relative_to(ROOT).as_posix(), words.split()


def resolve(words: list[str]) -> tuple[click.Command | None, list[str]]:
    """The command that the words name, and what is left of them."""
    found: click.Command = root
    context = click.Context(root)
    while words and isinstance(found, click.Group):
        names = words[0].split("|")
        if not all(found.get_command(context, name) for name in names):
            return (None if found is root else found), words
        child = found.get_command(context, names[0])
        assert child is not None
        found, words = child, words[1:]
    return found, words


def test_every_documented_command_and_flag_exists() -> None:
    wrong = []
    for page, words in calls():
        command, rest = resolve(words)
        if command is None:
            wrong.append(f"{page}: bul {' '.join(words)}")
            continue
        known = {
            name for option in command.params for name in (*option.opts, *option.secondary_opts)
        }
        flags = [word.partition("=")[0] for word in rest]
        wrong += [
            f"{page}: bul {' '.join(words)}: no {flag}"
            for flag in flags
            if FLAG.match(flag) and flag not in known | {"--help", "--config", "--version"}
        ]
    assert wrong == []


def test_every_setting_that_is_documented_exists() -> None:
    """`section.field` and BUL_SECTION_FIELD, wherever they stand in code."""
    known = set(re.findall(r"^## `\[(\w+)\]`", pages()["config.md"], re.MULTILINE))
    keys = set()
    for name, body in re.findall(
        r"^## `\[(\w+)\]`(.*?)(?=^## |\Z)", pages()["config.md"], re.MULTILINE | re.DOTALL
    ):
        keys |= {f"{name}.{field}" for field in re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)}
    variables = {"BUL_" + key.replace(".", "_").upper() for key in keys}
    variables |= {"BUL_CONFIG", "BUL_BENCH_API_KEY", "BUL_SECTION_FIELD", "BUL_IMAGE"}
    wrong = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        page = path.relative_to(ROOT).as_posix()
        wrong += [
            f"{page}: {key}"
            for code in re.findall(r"`([a-z]+\.[a-z_]+)`", text)
            if (key := code).split(".")[0] in known
            and key not in keys
            and not key.endswith((".py", ".toml", ".md"))
        ]
        wrong += [
            f"{page}: {name}" for name in re.findall(r"BUL_[A-Z_]+", text) if name not in variables
        ]
    assert wrong == []


def test_every_link_between_pages_leads_somewhere() -> None:
    link = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
    wrong = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in documents()
        for target in link.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert wrong == []


def test_a_planted_mistake_is_noticed() -> None:
    assert resolve(["frobnicate"])[0] is None
    assert resolve(["cache", "stats"])[1] == []
    assert CALL.findall("`bul cache stats --url URL`") == [" cache stats --url URL"]
