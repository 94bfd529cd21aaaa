"""The `bul` command itself: help, errors as one line, exit codes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bul.cli.main import COMMANDS, main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_its_help_has_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = importlib.import_module(f"bul.cli.{name}").command
    assert isinstance(command, click.Command)
    leaves = command.commands if isinstance(command, click.Group) else {"": command}
    for leaf in leaves:
        assert main([name, leaf, "--help"] if leaf else [name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.count(f"bul {name}") > 1, "the usage line, and an example"


def test_help_imports_no_command() -> None:
    source = (
        "import sys; from bul.cli.main import main; main(['--help'])\n"
        "heavy = {'numpy', 'uvicorn', 'httpx', 'rich', 'cyllama', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bul 0.")


@pytest.mark.parametrize(
    "arguments", [["nope"], ["config", "nope"], ["config", "show", "--nope"], ["--nope"]]
)
def test_bad_usage_is_exit_code_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_a_bad_setting_is_one_line_and_exit_code_two(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUL_SERVE_PROT", "1")
    assert main(["config", "show"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "BUL_SERVE_PORT" in captured.err


def test_config_show_names_values_and_origins(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bul.toml").write_text("[up]\nreplicas = 3\n")
    monkeypatch.setenv("BUL_SERVE_CACHE_SECRET", "hush")
    assert main(["config", "show", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["key"]: row for row in document["rows"]}
    assert rows["up.replicas"] == {"key": "up.replicas", "value": 3, "origin": "bul.toml"}
    assert rows["serve.cache_secret"]["value"] == "***"
    assert rows["serve.port"]["origin"] == "default"
    assert main(["config", "show"]) == 0
    table = capsys.readouterr().out
    assert "hush" not in table
    assert "bul.toml" in table


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bul", "nope"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
