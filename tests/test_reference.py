"""Docs against the code, both ways: what is documented exists, and what exists is documented."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from bul.cli.main import root

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
CODE = re.compile(r"```.*?```|`[^`\n]+`|^    \S.*$", re.DOTALL | re.MULTILINE)
CALL = re.compile(r"(?:^|(?<!from)(?<!SETUSER)[\s`(|&;]|bin/)bul((?: [\w.:/=,{}~@%+<>$\"'|*-]+)+)")
FLAG = re.compile(r"^--[a-z][a-z-]*$")


MADE = ("cli.md", "config.md", "errors.md", "router-metrics.md")


def test_the_generated_pages_are_what_the_code_says() -> None:
    """In a process of its own: click remembers what it was asked before."""
    command = [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def documents() -> list[Path]:
    """All that is written by hand."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return [path for path in found if path.name not in MADE]


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
    config = (REFERENCE / "config.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^## `\[(\w+)\]`", config, re.MULTILINE))
    keys = set()
    for name, body in re.findall(
        r"^## `\[(\w+)\]`(.*?)(?=^## |\Z)", config, re.MULTILINE | re.DOTALL
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
