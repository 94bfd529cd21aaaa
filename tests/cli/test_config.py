"""Settings from file, environment and flags: order, types, origins, and what is refused."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bul.config import Settings, child_environment, load_settings
from bul.errors import ConfigError

Write = Callable[[str], Path]
KNOWN = list(Settings().values())


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "bul.toml"
        path.write_text(text)
        return path

    return to_file


def refusal(
    path: Path | None = None,
    environ: dict[str, str] | None = None,
    flags: dict[str, tuple[str, object]] | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ or {}, flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_any_source_every_value_is_the_default() -> None:
    settings = load_settings(environ={})
    assert settings.values() == Settings().values()
    assert {settings.origin(key) for key in settings.values()} == {"default"}
    assert settings.file is None


def test_later_sources_win_and_are_named(write: Write) -> None:
    path = write("[serve]\nport = 1001\nslots = 2\ndrain_s = 3\n")
    environ = {"BUL_SERVE_PORT": "1002", "BUL_SERVE_SLOTS": "3"}
    settings = load_settings(path, environ, {"serve.port": ("--port", "1003")})
    assert (settings.serve.port, settings.origin("serve.port")) == (1003, "--port")
    assert (settings.serve.slots, settings.origin("serve.slots")) == (3, "BUL_SERVE_SLOTS")
    assert (settings.serve.drain_s, settings.origin("serve.drain_s")) == (3.0, str(path))
    assert settings.origin("serve.host") == "default"


def test_bul_toml_here_is_read_and_bul_config_names_another(write: Write, tmp_path: Path) -> None:
    write("[up]\nreplicas = 3\n")
    assert load_settings(environ={}).up.replicas == 3
    other = tmp_path / "other.toml"
    other.write_text("[up]\nreplicas = 4\n")
    assert load_settings(environ={"BUL_CONFIG": str(other)}).up.replicas == 4


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("BUL_CACHE_ENABLE_PREFETCH", "false", "cache.enable_prefetch", False),
        ("BUL_CACHE_ENABLE_PREFETCH", "1", "cache.enable_prefetch", True),
        ("BUL_CACHE_TTL_S", "2.5", "cache.ttl_s", 2.5),
        ("BUL_SERVE_ENGINE", "timed", "serve.engine", "timed"),
        (
            "BUL_ROUTE_REPLICAS",
            "http://a:1, http://b:2",
            "route.replicas",
            ("http://a:1", "http://b:2"),
        ),
        ("BUL_ROUTE_REPLICAS", "", "route.replicas", ()),
    ],
)
def test_variables_become_the_fields_type(
    variable: str, text: str, key: str, value: object
) -> None:
    assert load_settings(environ={variable: text}).values()[key] == value


@pytest.mark.parametrize("text", ["1.5", "many", "", "0x10", "nan", "\uff11"])
def test_text_that_is_no_whole_number_is_refused_by_name(text: str) -> None:
    said = refusal(environ={"BUL_SERVE_PORT": text})
    assert "BUL_SERVE_PORT" in said
    assert "serve.port" in said


@pytest.mark.parametrize("value", ['"8002"', "8002.5", "true", "[8002]"])
def test_a_wrong_type_in_the_file_is_refused_by_name(write: Write, value: str) -> None:
    assert "serve.port" in refusal(write(f"[serve]\nport = {value}\n"))


def test_a_value_out_of_range_names_its_source_and_its_range(write: Write) -> None:
    path = write("[serve]\nport = 70000\n")
    assert refusal(path) == f"[serve] port must be in [0, 65535], was 70000, from {path}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serv]\nport = 1\n", "the nearest known one is 'serve'"),
        ("[serve]\nprot = 1\n", "the nearest known one is 'port'"),
        ("serve = 1\n", "must be a section"),
        ("port = 1\n", "unknown section [port]"),
        ("[serve\n", "is not valid TOML"),
        ("keys = 3\n", "must be a section"),
        ("[keys]\nteam = 'sk-secret'\n", "team must be 64 hex digits"),
        ("[keys]\n'a b' = 'x'\n", "key name 'a b'"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(write: Write, text: str, said: str) -> None:
    message = refusal(write(text))
    assert said in message
    assert "sk-secret" not in message


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.toml")
    assert "Is a directory" in refusal(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refusal(tmp_path / "binary.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (1 << 20) + b"#")
    assert "larger than" in refusal(tmp_path / "huge.toml")


def test_keys_are_kept_with_their_source(write: Write) -> None:
    path = write(f"[keys]\nteam = '{'ab' * 32}'\n")
    settings = load_settings(path, {})
    assert settings.keys == {"team": "ab" * 32}
    assert settings.origin("keys.team") == str(path)


def test_a_secret_of_the_wrong_type_is_not_repeated() -> None:
    said = refusal(flags={"serve.cache_secret": ("--cache-secret", 123454321)})
    assert "123454321" not in said


@given(name=st.text(string.ascii_uppercase + "_", min_size=1, max_size=20))
def test_every_unknown_variable_is_refused_with_a_known_neighbour(name: str) -> None:
    known = {"BUL_" + key.replace(".", "_").upper() for key in KNOWN} | {"BUL_CONFIG"}
    assume(f"BUL_{name}" not in known)
    said = refusal(environ={f"BUL_{name}": "1"})
    assert said.startswith(f"unknown environment variable BUL_{name}; the nearest")
    assert said.split("'")[1] in known


@given(key=st.sampled_from(KNOWN), data=st.data())
def test_one_slip_of_the_finger_finds_the_key_that_was_meant(key: str, data: st.DataObject) -> None:
    section, _, field = key.partition(".")
    assume(len(field) >= 5)
    at = data.draw(st.integers(0, len(field) - 1))
    slip = field[:at] + field[at + 1 :]
    fields = {known.partition(".")[2] for known in KNOWN if known.startswith(f"{section}.")}
    assume(slip not in fields)
    variable = f"BUL_{section}_{slip}".upper()
    assert refusal(environ={variable: "1"}).split("'")[1].startswith(f"BUL_{section.upper()}_")


def test_other_variables_are_none_of_our_business() -> None:
    assert load_settings(environ={"PATH": "/bin", "BULL": "1"}).origins == {}


def test_a_child_comes_to_the_same_settings(write: Write) -> None:
    path = write(f"[serve]\nslots = 2\n[keys]\nteam = '{'ab' * 32}'\n")
    environ = {"PATH": "/bin", "BUL_CACHE_ENABLE_PREFETCH": "false"}
    flags: dict[str, tuple[str, object]] = {
        "serve.engine": ("--engine", "timed"),
        "route.replicas": ("--replica", ("http://a:1", "http://b:2")),
    }
    settings = load_settings(path, environ, flags)
    child = child_environment(settings, {"serve.threads": 1}, environ)
    assert child["PATH"] == "/bin"
    seen = load_settings(environ=child)
    assert seen.serve.threads == 1
    assert seen.keys == settings.keys
    assert seen.values() == settings.values() | {"serve.threads": 1}
