"""`bul keys`: make, list and revoke API keys. A key is shown once; only its hash is kept."""

from __future__ import annotations

import time
import typing

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting

if typing.TYPE_CHECKING:
    from bul.accounts.keys import Key

__all__ = ["command"]

_database = setting(
    "accounts.database_url", "--database-url", help="sqlite:////FILE or postgresql://..."
)
_state_dir = setting("up.state_dir", "--state-dir", help="Whose accounts.db, if no URL is given.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.group(name="keys")
def command() -> None:
    """API keys of this service. The key's name is its tenant.

    They are kept in the database of --database-url, else in accounts.db of the state folder, where
    `bul up` looks for them; a running region knows within a second. Once there is a key, nobody
    gets in without one. Those under [keys] in bul.toml go on working beside them.
    """


@command.command()
@click.argument("name")
@click.option("--toml", is_flag=True, help="Keep nothing; print the line for bul.toml instead.")
@_database
@_state_dir
@_json
def create(name: str, *, toml: bool, as_json: bool, **values: object) -> None:
    """Make a key for NAME and print it, once.

    The key named "operator" may also read /metrics and /signals.

    Example: bul keys create alice
    """
    from bul.accounts.keys import Key, check_name, hash_key, make_key

    check_name(name)
    secret = make_key()
    digest = hash_key(secret)
    line = f'"{name}" = "{digest}"'
    if not toml:
        from bul.accounts.store import create_key
        from bul.cli.accounts import open_accounts

        key = Key(name=name, digest=digest, created_s=time.time())
        create_key(open_accounts(load_settings(values)), key)
    if as_json:
        _print_json({"name": name, "key": secret, "line": line, "stored": not toml})
        return
    click.echo(f"key (shown only now): {secret}")
    if toml:
        click.echo(f"\nput this into bul.toml:\n\n[keys]\n{line}")


@command.command(name="list")
@_database
@_state_dir
@_json
def list_command(*, as_json: bool, **values: object) -> None:
    """Names, and since when each is valid or revoked; no key can be read again.

    Example: bul keys list
    """
    from bul.accounts.store import list_keys
    from bul.cli.accounts import open_accounts

    settings = load_settings(values)
    rows = [_row(key) for key in list_keys(open_accounts(settings))]
    rows += [{"name": name, "from": "bul.toml", "state": "valid"} for name in settings.keys]
    if as_json:
        _print_json({"rows": rows})
        return
    if not rows:
        click.echo("no keys: everybody on this machine gets in; make one with bul keys create NAME")
    for row in rows:
        click.echo(f"{row['name']:<32}  {row['state']:<8}  {row.get('created', row.get('from'))}")


@command.command()
@click.argument("name")
@_database
@_state_dir
@_json
def revoke(name: str, *, as_json: bool, **values: object) -> int:
    """End the key of NAME; replicas turn it away within a second. Its usage stays.

    Exit code 1 if there is no valid key with that name.

    Example: bul keys revoke alice
    """
    from bul.accounts.store import revoke_key
    from bul.cli.accounts import open_accounts

    settings = load_settings(values)
    done = revoke_key(open_accounts(settings), name, time.time())
    if as_json:
        _print_json({"name": name, "revoked": done})
    elif done:
        click.echo(f"revoked {name}")
    else:
        in_file = name in settings.keys
        said = "stands in bul.toml: take its line out" if in_file else "has no valid key here"
        click.echo(f"{name} {said}", err=True)
    return 0 if done else 1


def _row(key: Key) -> dict[str, object]:
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(key.created_s)) + " UTC"
    state = "valid" if key.revoked_s is None else "revoked"
    return {"name": key.name, "from": "database", "state": state, "created": made}


def _print_json(document: dict[str, object]) -> None:
    import msgspec

    click.echo(msgspec.json.encode(document).decode())
