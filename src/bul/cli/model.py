"""`bul model`: fetch the built-in model once. Never touches a model that was named by path."""

from __future__ import annotations

import click
import msgspec

__all__ = ["command"]


@click.group()
def command() -> None:
    """The built-in model, SmolLM2-135M-Instruct."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def fetch(*, as_json: bool) -> None:
    """Fetch the model into the cache folder, unless it is there and whole.

    Example: bul model fetch
    """
    from bul.inference.model_file import ensure_model

    path = ensure_model(lambda line: click.echo(f"      {line}", err=as_json))
    if as_json:
        click.echo(msgspec.json.encode({"path": str(path)}))
    else:
        click.echo(f"      {path}")
