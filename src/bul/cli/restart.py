"""`bul restart`: every replica of a running region anew, one at a time, without a lost request."""

from __future__ import annotations

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting

__all__ = ["command"]


@click.command(name="restart")
@setting("up.state_dir", "--state-dir", help="Of the running region; .bul if left out.")
@click.option("--json", "as_json", is_flag=True, help="One document; progress on stderr.")
def command(as_json: bool, **values: object) -> None:
    """Replace the replicas of the region that `bul up` runs, one after the other.

    A new replica is started first; once the router sends to it, the old one gets no new request,
    finishes its answers (for serve.drain_s at most) and exits. Then the next. Ctrl-C ends it after
    the replica it is at; the others stay as they are.

    Example: bul restart --state-dir .bul
    """
    import msgspec

    from bul.cli.control import ask_region

    settings = load_settings(values)

    def progress(text: str, **_: object) -> None:
        click.echo(text, err=as_json)

    result = ask_region(settings.up.state_dir, "restart", progress)
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        replaced, seconds = len(result["replaced"]), result["seconds"]
        click.echo(f"{replaced} replicas replaced in {seconds:.1f} s")
