"""House rules as tests: each ban names its replacement, each limit is a ratchet.

Works on syntax trees, since import-linter sees imports but neither calls nor `open()`.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "bul"
FOLDERS = ("src/bul", "tests", "bench", "tools")
LINES_MAX = 400
FUNCTION_LINES_MAX = 70

BANNED_MODULES = {
    "pickle": "msgspec, or the block format",
    "marshal": "msgspec, or the block format",
    "shelve": "lmdb",
    "dill": "msgspec",
    "unittest.mock": "a fake in bul.testing",
    "mock": "a fake in bul.testing",
    "pytest_mock": "a fake in bul.testing",
    "torch.load": "safetensors",
    "requests": "httpx",
}
BANNED_CALLS = {
    "eval": "a parser",
    "exec": "a function",
    "compile": "a function (re.compile is fine)",
    "torch.load": "safetensors",
    "os.system": "subprocess.run with a list",
    "pytest.skip": "a test that runs everywhere",
    "pytest.xfail": "a fix",
    "pytest.importorskip": "a dependency in pyproject.toml",
    "asyncio.get_event_loop": "asyncio.get_running_loop",
}
BANNED_IN_TESTS = {
    "time.sleep": "a made clock, or bul.testing.waiting.eventually",
    "monkeypatch.setattr": "a fake in bul.testing",
}
BANNED_MARKS = {"skip", "skipif", "xfail"}
BANNED_WORDS = dict.fromkeys(("TO" + "DO", "FIX" + "ME", "XX" + "X"), "finish it, or open an issue")

ENVIRONMENT = {"os.environ", "os.getenv", "os.environb", "os.putenv"}
ENVIRONMENT_OWNER = "src/bul/config/"

FILE_CALLS = {"open", "os.open", "io.open"}
FILE_METHODS = {"open", "read_text", "read_bytes", "write_text", "write_bytes"}
RIM = (
    "src/bul/accounts/database.py",  # a lock file beside SQLite
    "src/bul/bench/",
    "src/bul/cache/replay",
    "src/bul/cache/tiers/",
    "src/bul/cli/",
    "src/bul/config/load.py",
    "src/bul/dashboard/collect.py",  # the page that it ships
    "src/bul/config/machine.py",  # the control group's memory limit
    "src/bul/inference/fingerprint.py",
    "src/bul/inference/model_file.py",
    "src/bul/metrics/process.py",
    "src/bul/scaling/drivers/",
    "src/bul/scaling/lease.py",  # a lock file
    "src/bul/simulator/arrivals.py",  # traces
    "src/bul/testing/",
)
"""The only places that may touch files; a pure heart gets bytes."""

RUN_BY_OTHERS = {"src/bul/accounts/migrations/env.py"}
"""Alembic runs it within a migration; it cannot be imported outside one."""

REGISTRIES = (
    "py" + "pi.org",
    "python" + "hosted",
    "npm" + "js.org",
    "docker" + ".io",
    "quay" + ".io",
    "ghcr" + ".io",
    "hugging" + "face.co",
)
WORKPLACE = re.compile(r"(?<![\w.])/wo" + r"rk/|/home/\w|\bissu" + r"e[s]? (show|list)\b")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".sh", ".yaml", ".yml", ".json", ".cfg", ""}
NOT_OURS = {".git", ".venv", ".bul", "__pycache__", "out", "bul.egg-info", "build", "dist"}


@cache
def python_files() -> tuple[Path, ...]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return tuple(sorted(path for path in found if not NOT_OURS & set(path.parts)))


@cache
def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def dotted(node: ast.expr) -> str:
    """ "os.environ.get" for that expression; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


@cache
def nodes() -> tuple[tuple[Path, ast.AST, str], ...]:
    """Every node of every file, with the file and "name:line"."""
    return tuple(
        (path, node, f"{name_of(path)}:{getattr(node, 'lineno', 0)}")
        for path in python_files()
        for node in ast.walk(tree_of(path))
    )


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def is_test(path: Path) -> bool:
    return name_of(path).startswith("tests/")


def test_no_banned_module_is_imported() -> None:
    found = [
        f"{where}: {module}; use {BANNED_MODULES[module]}"
        for _, node, where in nodes()
        for module in imported(node)
        if module in BANNED_MODULES
    ]
    assert found == []


def test_no_banned_function_is_called() -> None:
    found = []
    for path, node, where in nodes():
        if isinstance(node, ast.Call):
            bans = BANNED_CALLS | (BANNED_IN_TESTS if is_test(path) else {})
            name = dotted(node.func)
            if name in bans:
                found.append(f"{where}: {name}; use {bans[name]}")
    assert found == []


def test_no_test_is_skipped() -> None:
    found = [
        where
        for _, node, where in nodes()
        if isinstance(node, ast.Attribute)
        and node.attr in BANNED_MARKS
        and dotted(node.value) == "pytest.mark"
    ]
    assert found == []


def test_nothing_is_left_for_later() -> None:
    found = [
        f"{where}: NotImplementedError; leave it out until it works"
        for _, node, where in nodes()
        if isinstance(node, ast.Name) and node.id == "NotImplementedError"
    ]
    for path in python_files():
        text = path.read_text(encoding="utf-8")
        found += [
            f"{name_of(path)}: {word}; {advice}"
            for word, advice in BANNED_WORDS.items()
            if re.search(rf"\b{word}\b", text)
        ]
    assert found == []


def test_only_config_reads_the_environment() -> None:
    found = [
        f"{where}: take it from Settings, or from bul.config.environment"
        for path, node, where in nodes()
        if isinstance(node, ast.Attribute)
        and dotted(node) in ENVIRONMENT
        and name_of(path).startswith("src/")
        and not name_of(path).startswith(ENVIRONMENT_OWNER)
    ]
    assert found == []


def test_only_the_rim_touches_files() -> None:
    found = []
    for path, node, where in nodes():
        if not isinstance(node, ast.Call) or not name_of(path).startswith("src/"):
            continue
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        opens = dotted(node.func) in FILE_CALLS or method in FILE_METHODS
        if opens and not name_of(path).startswith(RIM):
            found.append(f"{where}: pass the bytes in, or extend RIM with a reason")
    assert found == []


def test_no_file_is_longer_than_a_screenful_of_ideas() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in python_files()}
    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}


def test_no_function_is_longer_than_its_limit() -> None:
    found = [
        f"{where}: {node.name}"
        for _, node, where in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert found == []


def modules() -> list[Path]:
    return [path for path in python_files() if name_of(path).startswith("src/")]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_opens_with_a_sentence_about_itself(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "say what it is, then what it refuses"


def public_names(tree: ast.Module) -> set[str]:
    """Classes and functions defined at the top, without a leading underscore."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {
        node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")
    }


def declared_all(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if isinstance(target, ast.Name) and target.id == "__all__":
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            return list(ast.literal_eval(node.value))
    return None


def test_all_names_what_a_module_offers() -> None:
    found = []
    for path in modules():
        tree = tree_of(path)
        names = declared_all(tree)
        if path.name in ("__init__.py", "__main__.py") and names is None:
            continue
        if name_of(path) in RUN_BY_OTHERS:
            continue
        if names is None:
            found.append(f"{name_of(path)}: has no __all__")
            continue
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        module = module.removesuffix(".__init__")
        offered = set(dir(importlib.import_module(module)))
        found += [
            f"{name_of(path)}: {name} does not exist" for name in names if name not in offered
        ]
    assert found == []


def test_a_suppressed_warning_has_a_reason() -> None:
    bare = re.compile(r"#\s*(noqa|type:\s*ignore)(?!(: [A-Z0-9, ]+|\[[\w, -]+\]) +(-|#) \S)")
    found = [
        f"{name_of(path)}:{number}: say why, as `# noqa: RULE - reason`"
        for path in python_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line)
    ]
    assert found == []


def texts() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*")):
        parts = set(path.relative_to(ROOT).parts)
        hidden = any(part.startswith(".") and part != ".ci" for part in parts)
        if not hidden and not NOT_OURS & parts and path.suffix in TEXT_SUFFIXES and path.is_file():
            yield name_of(path), path.read_text(encoding="utf-8", errors="replace")


def test_no_package_registry_and_no_place_of_work_is_named() -> None:
    found = []
    for name, text in texts():
        found += [
            f"{name}: {host}; pip's own settings decide" for host in REGISTRIES if host in text
        ]
        found += [f"{name}: {match.group()!r}" for match in WORKPLACE.finditer(text)]
    assert found == []


def test_every_dependency_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for file, wanted in (
        ("requirements.txt", project["dependencies"]),
        ("requirements-dev.txt", project["optional-dependencies"]["dev"]),
    ):
        lines = (ROOT / file).read_text().splitlines()
        pins = {line.partition("==")[0].lower() for line in lines if "==" in line}
        names = {re.split(r"[=<>;\[ ]", text)[0].lower() for text in wanted}
        assert names - pins == set(), f"{file}: run make pins"
