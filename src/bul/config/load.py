"""Reads `bul.toml`, `BUL_*` and flags into `Settings`, and remembers where each value came from.

Refuses what it does not know: an unknown key is an error that names the nearest known one, a
value of the wrong type is an error that names its source. Nothing else in BUL reads the
environment or a configuration file.

Rising order: defaults, `bul.toml`, `BUL_SECTION_FIELD` in the environment, flags.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from bul.config.accounts import AccountsConfig
from bul.config.drivers import ComposeConfig, KubernetesConfig, RayConfig
from bul.config.keys import KeyLimits, read_keys
from bul.config.regions import RegionsConfig
from bul.config.scale import ScaleConfig
from bul.config.sections import KVCacheConfig, RouteConfig, ServeConfig, TimedConfig, UpConfig
from bul.config.tracing import TracingConfig
from bul.errors import ConfigError

__all__ = [
    "Origin",
    "Settings",
    "child_environment",
    "environment",
    "field_type",
    "is_secret",
    "load_settings",
]

Origin = str
"""Where a value came from: "default", the file's name, "BUL_SERVE_PORT" or "--port"."""

FILE_NAME = "bul.toml"
FILE_VARIABLE = "BUL_CONFIG"
FILE_BYTES_MAX = 1 << 20
BENCH_KEY_VARIABLE = "BUL_BENCH_API_KEY"
"""What `bul bench` shows to the endpoint under test: a secret of somebody else, so no setting."""

SECTIONS: dict[str, type] = {
    "accounts": AccountsConfig,
    "cache": KVCacheConfig,
    "serve": ServeConfig,
    "timed": TimedConfig,
    "route": RouteConfig,
    "up": UpConfig,
    "scale": ScaleConfig,
    "regions": RegionsConfig,
    "compose": ComposeConfig,
    "kubernetes": KubernetesConfig,
    "ray": RayConfig,
    "tracing": TracingConfig,
}
KEYS_SECTION = "keys"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Every section, with `origins` naming the source of "section.field". Frozen.

    keys: name -> SHA-256 of the API key, 64 hex digits. key_limits: of the keys that have any.
    file: what was read, None if nothing.
    """

    accounts: AccountsConfig = AccountsConfig()
    cache: KVCacheConfig = KVCacheConfig()
    serve: ServeConfig = ServeConfig()
    timed: TimedConfig = TimedConfig()
    route: RouteConfig = RouteConfig()
    up: UpConfig = UpConfig()
    scale: ScaleConfig = ScaleConfig()
    regions: RegionsConfig = RegionsConfig()
    compose: ComposeConfig = ComposeConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    ray: RayConfig = RayConfig()
    tracing: TracingConfig = TracingConfig()
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    key_limits: Mapping[str, KeyLimits] = dataclasses.field(default_factory=dict)
    origins: Mapping[str, Origin] = dataclasses.field(default_factory=dict)
    file: Path | None = None

    def values(self) -> dict[str, object]:
        """Values by "section.field", in the order of the sections; the keys' hashes last."""
        found: dict[str, object] = {}
        for section, kind in SECTIONS.items():
            part = getattr(self, section)
            for field in dataclasses.fields(kind):
                found[f"{section}.{field.name}"] = getattr(part, field.name)
        return found | {f"{KEYS_SECTION}.{name}": digest for name, digest in self.keys.items()}

    @property
    def resume_secret(self) -> str | None:
        """With which routers seal what replicas shall resume; None: no seal can be believed,
        because keys are set and no secret is. Without keys all listen on loopback alone.
        """
        secret = self.route.resume_secret or self.serve.cache_secret
        return None if self.keys and not secret else secret

    def origin(self, key: str) -> Origin:
        return self.origins.get(key, "default")


def environment() -> Mapping[str, str]:
    """The process's environment; the one place that reads it."""
    import os  # noqa: PLC0415 - kept in sight of the rule that it enforces

    return dict(os.environ)


def load_settings(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[Origin, object]] | None = None,
) -> Settings:
    """Merge all sources; raises ConfigError, one line each.

    path: the file, which must exist; None looks at BUL_CONFIG, then for `bul.toml` here.
    environ: None is the process's own. flags: "section.field" -> (flag as typed, value); the
    value is converted as in the environment if it is a string, else as in the file.
    """
    environ = environment() if environ is None else environ
    file = _find_file(path, environ)
    merged: dict[str, tuple[Origin, object]] = {}
    keys: Mapping[str, str] = {}
    limits: Mapping[str, KeyLimits] = {}
    if file is not None:
        document = _read_file(file)
        keys, limits = read_keys(document.pop(KEYS_SECTION, {}), str(file))
        merged |= _from_document(document, str(file))
    merged |= _from_environment(environ)
    merged |= {key: _from_flag(key, *given) for key, given in (flags or {}).items()}
    sections = {name: _section(name, kind, merged) for name, kind in SECTIONS.items()}
    origins = {key: origin for key, (origin, _) in merged.items()}
    origins |= {f"{KEYS_SECTION}.{name}": str(file) for name in keys}
    return Settings(**sections, keys=keys, key_limits=limits, origins=origins, file=file)


def child_environment(
    settings: Settings,
    changes: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment in which a child process comes to the same `settings`, with `changes`.

    Flags travel as variables, since those of `bul up` mean nothing to `bul serve`, and secrets
    must not show in `ps`. changes: "section.field" -> value.
    """
    environ = environment() if environ is None else environ
    child = {name: text for name, text in environ.items() if not name.startswith("BUL_")}
    if settings.file is not None:
        child[FILE_VARIABLE] = str(settings.file.resolve())
    told = {key: settings.values()[key] for key in settings.origins if _is_told(settings, key)}
    for key, value in (told | dict(changes)).items():
        field_type(key)
        child[_variable(key)] = _as_text(value)
    return child


def _is_told(settings: Settings, key: str) -> bool:
    return not key.startswith(f"{KEYS_SECTION}.") and settings.origins[key] != str(settings.file)


def _as_text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def field_type(key: str) -> typing.Any:
    """The type of "section.field". Raises ConfigError naming the nearest known key."""
    section, _, name = key.partition(".")
    hints = typing.get_type_hints(SECTIONS[section]) if section in SECTIONS else {}
    if name not in hints:
        raise ConfigError(f"unknown setting {key!r}{_nearest(key, _known_keys())}")
    return hints[name]


def is_secret(key: str) -> bool:
    """Whether the value of "section.field" must not be shown."""
    return key.endswith(("_secret", "shared_url", "database_url"))


def _known_keys() -> list[str]:
    return [
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
    ]


def _variable(key: str) -> str:
    return "BUL_" + key.replace(".", "_").upper()


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"; the nearest known one is {found[0]!r}" if found else ""


def _find_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is None and environ.get(FILE_VARIABLE):
        path = Path(environ[FILE_VARIABLE])
    if path is not None:
        return path
    here = Path(FILE_NAME)
    return here if here.exists() else None


def _read_file(file: Path) -> dict[str, typing.Any]:
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(f"{file} is larger than {FILE_BYTES_MAX} bytes")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot read {file}: {reason}", hint="name it with --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error.reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _from_document(document: Mapping[str, object], source: str) -> dict[str, tuple[Origin, object]]:
    found: dict[str, tuple[Origin, object]] = {}
    for section, table in document.items():
        if section not in SECTIONS:
            near = _nearest(section, [*SECTIONS, KEYS_SECTION])
            raise ConfigError(f"{source}: unknown section [{section}]{near}")
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {section} must be a section, [{section}]")
        known = [field.name for field in dataclasses.fields(SECTIONS[section])]
        for name, value in table.items():
            if name not in known:
                near = _nearest(name, known)
                raise ConfigError(f"{source}: unknown key {name!r} in [{section}]{near}")
            key = f"{section}.{name}"
            found[key] = (source, _convert(key, source, value, strict=True))
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Origin, object]]:
    variables = {_variable(key): key for key in _known_keys()}
    found: dict[str, tuple[Origin, object]] = {}
    for name, text in environ.items():
        if not name.startswith("BUL_") or name in (FILE_VARIABLE, BENCH_KEY_VARIABLE):
            continue
        if name not in variables:
            near = _nearest(name, [*variables, FILE_VARIABLE])
            raise ConfigError(f"unknown environment variable {name}{near}")
        key = variables[name]
        found[key] = (name, _convert_text(key, name, text))
    return found


def _from_flag(key: str, origin: Origin, value: object) -> tuple[Origin, object]:
    if isinstance(value, str):
        return origin, _convert_text(key, origin, value)
    return origin, _convert(key, origin, value, strict=True)


def _convert_text(key: str, origin: Origin, text: str) -> object:
    if typing.get_origin(field_type(key)) is tuple:
        parts = tuple(part.strip() for part in text.split(",") if part.strip())
        return _convert(key, origin, parts, strict=False)
    return _convert(key, origin, text, strict=False)


def _convert(key: str, origin: Origin, value: object, *, strict: bool) -> object:
    try:
        return msgspec.convert(value, field_type(key), strict=strict)
    except msgspec.ValidationError as error:
        shown = "***" if is_secret(key) else repr(value)
        raise ConfigError(f"{origin}: {key} = {shown}: {error}") from error


def _section(name: str, kind: type, merged: Mapping[str, tuple[Origin, object]]) -> typing.Any:
    given = {
        key.partition(".")[2]: value
        for key, (_, value) in merged.items()
        if key.startswith(f"{name}.")
    }
    try:
        return kind(**given)
    except ConfigError as error:
        field = str(error).partition(" ")[0]
        origin, _ = merged.get(f"{name}.{field}", ("the defaults", None))
        raise ConfigError(f"[{name}] {error}, from {origin}") from error
