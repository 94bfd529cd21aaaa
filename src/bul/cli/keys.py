"""`bul keys`: make API keys. The key is shown once; only its hash is ever written down."""

from __future__ import annotations

import re

import click
import msgspec

__all__ = ["command"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@click.group(name="keys")
def command() -> None:
    """API keys of this service. The key's name is its tenant."""


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def create(name: str, *, as_json: bool) -> None:
    """Make a key for NAME and print it, once, with its line for bul.toml.

    Writes nothing. The key named "operator" may also read /metrics and /signals.

    Example: bul keys create alice
    """
    from bul.errors import ConfigError
    from bul.service.auth import hash_key, make_key

    if not NAME.fullmatch(name):
        raise ConfigError(f"key name {name!r} may hold letters, digits, . _ - (64 at most)")
    key = make_key()
    line = f'"{name}" = "{hash_key(key)}"'
    if as_json:
        click.echo(msgspec.json.encode({"name": name, "key": key, "line": line}))
        return
    click.echo(f"key (shown only now): {key}\n\nput this into bul.toml:\n\n[keys]\n{line}")
