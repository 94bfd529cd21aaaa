"""One question to a running replica, for commands that look into it.

Refuses to follow redirects, to use a proxy, and to take a key as a flag, where `ps` would show it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bul.errors import BulError

__all__ = ["ask_replica", "live_options", "read_key"]

TIMEOUT_S = 30.0


def live_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--url and --key-file."""
    key = click.option(
        "--key-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="With --url: a file that holds an API key.",
    )
    return click.option("--url", default="", help="Ask this replica instead of the folder.")(
        key(command)
    )


def read_key(path: Path | None) -> str:
    """The key in the file, "" without one."""
    return "" if path is None else path.read_text(encoding="utf-8").strip()


def ask_replica(url: str, path: str, *, key: str = "", body: object = None) -> Any:
    """The JSON at the base `url` + `path`; a POST if there is a body. Raises BulError."""
    import httpx
    import msgspec

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(trust_env=False, timeout=TIMEOUT_S, headers=headers) as client:
            address = url.rstrip("/") + path
            response = client.get(address) if body is None else client.post(address, json=body)
        if response.status_code == httpx.codes.OK:
            return msgspec.json.decode(response.content)
    except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError) as error:
        hint = "--url is a replica's address, such as http://127.0.0.1:8002"
        raise BulError(f"{url} does not answer: {error}", hint=hint) from error
    hint = ""
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        hint = "give the operator's key with --key-file"
    said = response.text[:300]
    raise BulError(f"{url}{path} answered {response.status_code}: {said}", hint=hint)
